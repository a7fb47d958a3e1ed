/* The settings form, made from the server's list of controls. Enters: /api/model. Leaves: the settings of a request.
   An empty field means "as the checkpoint recommends"; what that is stands in the field as its placeholder. */
"use strict";

(function (demo) {
  const el = demo.el;
  const NONE = "not set"; // the checkpoint recommends nothing here
  let forms = 0;

  class Form {
    constructor(place, model, onchange = () => undefined) {
      this.model = model;
      this.number = (forms += 1);
      this.inputs = new Map();
      this.trouble = el("div", { class: "problem", role: "alert", hidden: true });
      this.help = el("p", { class: "help", "aria-hidden": "true" });
      place.append(...this.groups(model.controls)); // its owner places the trouble above and the help below
      place.addEventListener("input", (event) => this.changed(event, onchange));
      this.explainNothing();
    }

    groups(controls) {
      const sets = new Map();
      for (const control of controls) {
        const name = control.group || "Decoding";
        if (!sets.has(name)) sets.set(name, el("fieldset", {}, el("legend", { text: name })));
        sets.get(name).append(this.row(control));
      }
      return sets.values();
    }

    row(control) {
      const id = `setting-${this.number}-${control.name}`;
      const made = makeInput(control, id);
      const input = made.matches("input, select") ? made : made.querySelector("input");
      const note = el("span", { class: "unseen", id: `${id}-help`, text: control.help });
      const wrong = el("p", { class: "wrong", id: `${id}-wrong`, hidden: true });
      input.setAttribute("aria-describedby", `${id}-help ${id}-wrong`);
      const row = el("div", { class: "setting", "data-name": control.name }, el("label", { for: id, text: control.label }), made, note, wrong);
      const show = () => this.explain(control);
      row.addEventListener("pointerenter", show);
      row.addEventListener("focusin", show);
      this.inputs.set(control.name, { control, input, row, wrong });
      return row;
    }

    explain(control) {
      const range = Number.isFinite(control.min) && Number.isFinite(control.max) ? ` (${control.min} to ${control.max})` : "";
      demo.empty(this.help).append(el("b", { text: control.label }), `${range}  ${control.help}`);
    }

    explainNothing() {
      demo.empty(this.help).append("Empty fields are as the checkpoint recommends. Point at a setting to read what it does.");
    }

    changed(event, onchange) {
      const row = event.target.closest(".setting");
      if (row && this.inputs.has(row.dataset.name)) this.mark(row.dataset.name, null);
      this.showError(null);
      onchange();
    }

    /* {max_tokens, seed, settings} of a request; what is empty is left out. Throws what a number field cannot read. */
    values() {
      const settings = {};
      for (const [name, { control, input }] of this.inputs) {
        const value = read(control, input);
        if (value !== null) settings[name] = value;
      }
      const { max_tokens: length = null, seed = 0, ...rest } = settings;
      return { max_tokens: length, seed, settings: rest };
    }

    set(name, value) {
      this.inputs.get(name).input.value = String(value);
    }

    reset() {
      for (const name of this.inputs.keys()) this.set(name, "");
      this.showError(null);
      this.explainNothing();
    }

    /* A refusal at the top of the form and, if it names a control, at that control. True: it named one. */
    showError(error) {
      for (const name of this.inputs.keys()) this.mark(name, null);
      demo.problem(this.trouble, error);
      const name = error ? this.nameIn(error) : null;
      if (name) this.mark(name, error);
      return Boolean(name);
    }

    nameIn(error) {
      const named = (text) => {
        const said = plain(text || "");
        const found = [...this.inputs.values()].filter(({ control }) => said.includes(plain(control.name)) || said.includes(plain(control.label)));
        found.sort((a, b) => b.control.name.length - a.control.name.length);
        return found.length ? found[0].control.name : null;
      };
      return named(error.what) || named(error.message); // what is wrong, before what it is compared with
    }

    mark(name, error) {
      const { input, row, wrong } = this.inputs.get(name);
      row.classList.toggle("bad", Boolean(error));
      if (error) input.setAttribute("aria-invalid", "true");
      else input.removeAttribute("aria-invalid");
      wrong.hidden = !error;
      wrong.textContent = error ? [error.expected && `expected ${error.expected}`, error.remedy].filter(Boolean).join(". ") : "";
      if (error) row.scrollIntoView({ block: "nearest" });
    }
  }

  function plain(text) {
    return ` ${text.toLowerCase().replace(/[^a-z0-9]+/g, " ").trim()} `;
  }

  function makeInput(control, id) {
    const hint = advice(control);
    const auto = hint === NONE ? NONE : `auto: ${hint}`;
    if (control.type === "choice") return select(id, auto, control.choices);
    if (control.type === "flag") return select(id, auto, [{ value: "true", label: "on" }, { value: "false", label: "off" }]);
    if (control.type === "text") return freeText(control, id, hint);
    const step = control.type === "int" ? control.step || 1 : "any";
    return el("input", { id, type: "number", min: control.min, max: control.max, step, placeholder: hint, inputmode: control.type === "int" ? "numeric" : "decimal" });
  }

  /* A text that may be typed freely, with the usual ones to pick from. */
  function freeText(control, id, hint) {
    const list = control.choices.length ? el("datalist", { id: `${id}-list` }, ...control.choices.map((c) => el("option", { value: c.value, text: c.label }))) : null;
    const input = el("input", { id, type: "text", placeholder: hint, autocomplete: "off", spellcheck: "false", list: list && list.id });
    return el("span", { class: "free" }, input, list);
  }

  function select(id, auto, choices) {
    const options = choices.map((c) => el("option", { value: String(c.value), text: c.label || String(c.value) }));
    return el("select", { id }, el("option", { value: "", text: auto }), ...options);
  }

  function advice(control) {
    if (control.placeholder !== undefined && control.placeholder !== null && control.placeholder !== "") return String(control.placeholder);
    const value = control.default;
    if (value === null || value === undefined) return NONE;
    return typeof value === "boolean" ? (value ? "on" : "off") : String(value);
  }

  function read(control, input) {
    const number = control.type === "int" || control.type === "float";
    if (number && input.validity.badInput) {
      throw new demo.ApiError({ what: control.label, expected: control.type === "int" ? "a whole number" : "a number", got: "something else" }, 0);
    }
    if (input.value.trim() === "") return null;
    if (number) return within(control, Number(input.value), input.value);
    return control.type === "flag" ? input.value === "true" : input.value;
  }

  /* A number that its field allows. The server has the last word, but speaks of its own, wider limits. */
  function within(control, value, typed) {
    const [least, most] = [control.min ?? -Infinity, control.max ?? Infinity];
    const whole = control.type === "int";
    if (value >= least && value <= most && (!whole || Number.isInteger(value))) return value;
    const range = Number.isFinite(most) ? ` from ${least} to ${most}` : Number.isFinite(least) ? ` of at least ${least}` : "";
    throw new demo.ApiError({ what: control.label, expected: `${whole ? "a whole number" : "a number"}${range}`, got: demo.clip(typed, 60) }, 0);
  }

  /* The page's own preferences, as rows of the same form. None of them is sent. */
  function display(place) {
    const delay = el("input", { id: "pref-delay", type: "number", min: 0, max: 2000, step: 10, value: String(demo.prefs.get("delay")), "aria-describedby": "pref-help" });
    delay.addEventListener("input", () => {
      const ok = delay.value.trim() !== "" && demo.prefs.set("delay", Number(delay.value));
      if (ok) delay.removeAttribute("aria-invalid");
      else delay.setAttribute("aria-invalid", "true");
    });
    place.append(
      el("fieldset", {}, el("legend", { text: "Display" }),
        row("pref-delay", "Step pause (ms)", delay),
        row("pref-palette", "Colours", choose("palette", [["published", "published"], ["safe", "colour-blind safe"]])),
        row("pref-theme", "Theme", choose("theme", [["auto", "as the system"], ["light", "light"], ["dark", "dark"]])),
        el("p", { class: "quiet", id: "pref-help", text: "The pause only slows what you see; the run and its numbers are not touched." })),
    );
  }

  function row(id, label, input) {
    return el("div", { class: "setting" }, el("label", { for: id, text: label }), input);
  }

  function choose(name, options) {
    const input = el("select", { id: `pref-${name}`, on: { change: () => demo.prefs.set(name, input.value) } },
      ...options.map(([value, text]) => el("option", { value, text })));
    input.value = demo.prefs.get(name);
    document.addEventListener("unmask-prefs", (event) => {
      if (event.detail.name === name) input.value = event.detail.value;
    });
    return input;
  }

  demo.SettingsForm = Form;
  demo.displayForm = display;
})(Unmask.demo);
