/* The page as a whole: the model's name, tabs, the settings panel, and the key that stops. */
"use strict";

(function (demo) {
  const el = demo.el;
  const { byId } = demo;
  const MODES = ["chat", "infill", "race", "gallery"];
  const WIDE = window.matchMedia("(min-width: 1280px)");
  const KINDS = { canvas: "whole canvas", block: "block diffusion", autoregressive: "left to right", recurrent: "recurrent" };
  const modes = {};
  let current = "chat";

  // ---- tabs --------------------------------------------------------------------------------------------------------

  demo.openTab = function (name) {
    current = name;
    for (const mode of MODES) {
      const tab = byId(`tab-${mode}`);
      tab.setAttribute("aria-selected", String(mode === name));
      tab.tabIndex = mode === name ? 0 : -1;
      byId(`mode-${mode}`).hidden = mode !== name;
    }
    byId("app").dataset.mode = name;
    if (modes[name] && modes[name].opened) modes[name].opened();
  };

  function listenTabs() {
    for (const mode of MODES) byId(`tab-${mode}`).addEventListener("click", () => demo.openTab(mode));
    document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
      const at = MODES.indexOf(current);
      const goal = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: MODES.length - 1 }[event.key];
      if (goal === undefined) return;
      event.preventDefault();
      const name = MODES[(goal + MODES.length) % MODES.length];
      demo.openTab(name);
      byId(`tab-${name}`).focus();
    });
  }

  // ---- settings ----------------------------------------------------------------------------------------------------

  /* Beside the modes where there is room, else a drawer over them. */
  function showSettings(open, focus = false) {
    byId("app").classList.toggle("settings-open", open);
    byId("settings-toggle").setAttribute("aria-expanded", String(open));
    byId("settings").hidden = !open;
    if (!focus) return;
    if (open) byId("settings-close").focus();
    else byId("settings-toggle").focus();
  }

  function listenSettings(form) {
    const drawer = () => !WIDE.matches;
    byId("settings-toggle").addEventListener("click", () => showSettings(byId("settings").hidden, drawer()));
    byId("settings-close").addEventListener("click", () => showSettings(false, true));
    byId("settings-reset").addEventListener("click", () => {
      form.reset();
      modes.chat.previewSoon();
      demo.announce("Settings are as recommended");
    });
    WIDE.addEventListener("change", () => showSettings(WIDE.matches));
    byId("main").addEventListener("pointerdown", () => {
      if (drawer() && !byId("settings").hidden) showSettings(false);
    });
  }

  /* A refusal of the server: at the form, which opens if the fault is one of its fields; on a phone the form would
     hide the canvas, so that other refusals are said in the banner. */
  demo.refused = function (form, error) {
    const named = form.showError(error);
    const seen = !byId("settings").hidden && WIDE.matches;
    if (named && !seen) showSettings(true);
    demo.problem(byId("banner"), named || seen ? null : error);
  };

  function makeForm(model) {
    const place = byId("settings-form");
    if (model.has_chat) {
      const pick = el("select", { id: "prompt-form", on: { change: () => modes.chat.previewSoon() } },
        el("option", { value: "chat", text: "chat template" }), el("option", { value: "raw", text: "raw text, no history" }));
      place.append(el("fieldset", {}, el("legend", { text: "Prompt" }), el("div", { class: "setting" }, el("label", { for: "prompt-form", text: "Form" }), pick)));
    }
    demo.form = () => (model.has_chat ? byId("prompt-form").value : "raw");
    const form = new demo.SettingsForm(place, model, () => {
      demo.problem(byId("banner"), null);
      modes.chat.previewSoon();
    });
    demo.displayForm(place);
    place.append(about(model), form.help);
    place.prepend(form.trouble);
    return form;
  }

  function about(model) {
    const rows = Object.entries(model.recommended || {}).flatMap(([name, value]) => [el("dt", { text: name.replaceAll("_", " ") }), el("dd", { text: String(value) })]);
    const issues = (model.known_issues || []).map((text) => el("li", { text }));
    return el("details", { class: "about" }, el("summary", { text: `Recommended for ${model.name}` }), el("dl", {}, ...rows),
      model.note ? el("p", { class: "quiet", text: model.note }) : null,
      issues.length ? el("ul", { class: "quiet" }, ...issues) : null);
  }

  // ---- keys and start ----------------------------------------------------------------------------------------------

  function listenKeys() {
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.defaultPrevented) return;
      if (!WIDE.matches && !byId("settings").hidden) showSettings(false, true);
      else if (modes[current] && modes[current].stop) modes[current].stop();
    });
  }

  function dropToken() {
    const url = new URL(window.location.href);
    if (!url.searchParams.has("token")) return;
    url.searchParams.delete("token");
    window.history.replaceState(null, "", url);
  }

  function nameModel(model) {
    const kind = KINDS[model.kind];
    const words = model.family.toLowerCase().includes(kind) ? model.family : `${model.family} · ${kind}`;
    demo.empty(byId("model")).append(el("strong", { text: model.name }), el("span", { class: "quiet", text: words }));
    document.title = `unmask: ${model.name}`;
  }

  async function start() {
    dropToken();
    listenTabs();
    listenKeys();
    let model;
    try {
      model = await demo.api.get("/api/model");
    } catch (error) {
      demo.empty(byId("model"));
      demo.problem(byId("banner"), error);
      return;
    }
    nameModel(model);
    for (const note of document.querySelectorAll(".from-left")) note.hidden = model.kind !== "block" && model.kind !== "autoregressive";
    const form = makeForm(model);
    listenSettings(form);
    showSettings(WIDE.matches);
    modes.chat = new demo.Chat(model, form);
    modes.infill = new demo.Infill(model, form);
    modes.race = new demo.Race(model, form);
    modes.gallery = new demo.Gallery();
    document.documentElement.dataset.ready = "";
  }

  start();
})(Unmask.demo);
