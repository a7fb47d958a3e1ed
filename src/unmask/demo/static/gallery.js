/* Gallery: recordings of the server, and a file from disk. A file is read here and goes nowhere. */
"use strict";

(function (demo) {
  const el = demo.el;
  const { byId } = demo;
  const LARGEST = 64 * 1024 * 1024;
  const REMEDY = "Make one with `unmask generate --record run.jsonl`, or save a run of this page.";

  /* The Recording of a file's text. Throws what is wrong with it. */
  function read(text, name) {
    const lines = text.split("\n").filter((line) => line.trim() !== "");
    const [recording, sound] = [new Unmask.Recording(), new demo.Sound()];
    lines.forEach((words, i) => {
      const wrong = (expected, remedy = REMEDY) => new demo.ApiError({ what: `${name}, line ${i + 1}`, expected, got: demo.clip(words.replace(/\p{Cc}/gu, "?"), 60), remedy }, 0);
      let line;
      try {
        line = Unmask.parse(words);
      } catch (error) {
        throw wrong("a line of a recording");
      }
      try {
        sound.line(line);
      } catch (error) {
        throw wrong(error.message);
      }
      try {
        recording.push(line);
      } catch (error) {
        throw wrong("a recording of this format and version", error.message);
      }
    });
    if (!recording.header) throw new demo.ApiError({ what: name, expected: "a recording of unmask", got: "another file", remedy: REMEDY }, 0);
    if (recording.ids().length === 0) throw new demo.ApiError({ what: name, expected: "at least one run", got: "none", remedy: REMEDY }, 0);
    if (!recording.complete) throw new demo.ApiError({ what: name, expected: 'a last line {"end": number of lines}', got: "no such line: the recording is cut", remedy: REMEDY }, 0);
    try {
      sound.pieces(recording.pieces);
    } catch (error) {
      throw new demo.ApiError({ what: name, expected: error.message, got: "none", remedy: REMEDY }, 0);
    }
    return recording;
  }

  class Gallery {
    constructor() {
      this.stage = new demo.Stage(byId("gallery-stage"), { title: "A recording", prompts: true, empty: "Choose a recording, or drop a file here." });
      this.loaded = false;
      this.asked = 0; // recordings asked for: one that comes late does not replace a newer one
      this.problem = byId("gallery-problem");
      this.listen();
    }

    listen() {
      byId("gallery-reload").addEventListener("click", () => this.load());
      byId("gallery-file").addEventListener("change", (event) => this.file(event.target.files[0]));
      document.addEventListener("unmask-kept", () => {
        this.loaded = false;
      });
      document.addEventListener("dragover", (event) => {
        if (![...event.dataTransfer.types].includes("Files")) return;
        event.preventDefault();
        byId("gallery-drop").classList.add("over");
      });
      document.addEventListener("dragleave", () => byId("gallery-drop").classList.remove("over"));
      document.addEventListener("drop", (event) => {
        if (!event.dataTransfer.files.length) return;
        event.preventDefault();
        byId("gallery-drop").classList.remove("over");
        demo.openTab("gallery");
        this.file(event.dataTransfer.files[0]);
      });
    }

    opened() {
      if (!this.loaded) this.load();
    }

    async load() {
      const before = this.asked;
      try {
        const found = await demo.api.get("/api/gallery");
        this.loaded = true;
        this.list(found);
        if (found.length && !this.stage.player && before === this.asked) this.show(found[0]);
      } catch (error) {
        demo.problem(this.problem, error);
      }
    }

    list(found) {
      const place = demo.empty(byId("gallery-list"));
      if (!found.length) place.append(el("li", { class: "quiet", text: "This server has no recordings yet." }));
      place.append(...found.map((item) => el("li", {}, el("button", { type: "button", class: "card", "data-name": item.name, on: { click: () => this.show(item) } },
        el("span", { class: "card-title", text: item.title || item.name }),
        el("span", { class: "card-facts", text: [item.name, item.model || item.family, `${item.tokens} tokens`, `${item.forwards} forwards`].filter(Boolean).join(" · ") })))));
    }

    async show(item) {
      const at = `/api/gallery/${encodeURIComponent(item.name)}`;
      const mine = (this.asked += 1);
      try {
        const text = await demo.api.text(`${at}.jsonl`);
        if (mine === this.asked) this.open(read(text, item.name), item.name, at);
      } catch (error) {
        if (mine === this.asked) demo.problem(this.problem, error);
      }
    }

    async file(file) {
      if (!file) return;
      const mine = (this.asked += 1);
      try {
        if (file.size > LARGEST) throw new demo.ApiError({ what: file.name, expected: "at most 64 MB", got: `${Math.round(file.size / 1e6)} MB` }, 0);
        const text = await file.text();
        if (mine === this.asked) this.open(read(text, file.name), file.name, null);
      } catch (error) {
        if (mine === this.asked) demo.problem(this.problem, error);
      }
    }

    open(recording, name, at) {
      demo.problem(this.problem, null);
      const { model = "", family = "" } = recording.header;
      this.stage.open(recording, { title: name, at, note: [model, family].filter(Boolean).join(" · ") });
      for (const card of byId("gallery-list").querySelectorAll(".card")) {
        if (at !== null && card.dataset.name === name) card.setAttribute("aria-current", "true");
        else card.removeAttribute("aria-current");
      }
      this.stage.player.seek(0);
      this.stage.player.play();
      demo.announce(`${name} is open`);
    }
  }

  demo.Gallery = Gallery;
  demo.readRecording = read;
})(Unmask.demo);
