/* The stage of a mode: what is shown (a preview, a live run, a recording), its state in words, and what can be done
   with it: saved as JSONL or HTML, kept in the gallery, a word put into one of its cells. */
"use strict";

(function (demo) {
  const el = demo.el;
  const WORDS = {
    idle: "ready", sending: "sending", waiting: "waiting", running: "writing", showing: "written; still showing",
    stopping: "stopping", stopped: "stopped", finished: "finished", failed: "failed", preview: "preview", open: "recording",
  };

  class Stage {
    /* onWord(position in the answer, word): a reader typed a word into a cell; without it cells are not for typing. */
    constructor(place, { title, onWord = null, canKeep = false, prompts = false, empty = "" }) {
      this.prompts = prompts; // whether the player shows the prompt
      this.refocus = null; // the box that gets the focus back after a word was put into it
      this.onWord = onWord;
      this.player = null;
      this.box = null; // where a word is typed
      this.run = null; // the Run of this page that is on show
      this.at = null; // where the server has what is on show, without the suffix
      this.heading = el("h2", { text: title });
      this.pill = el("span", { class: "pill", "data-state": "idle", text: WORDS.idle });
      this.body = el("div", { class: "stage-body" });
      this.note = el("p", { class: "quiet stage-note" });
      this.jsonl = button("Save as JSONL", () => this.saveJsonl());
      this.html = el("a", { class: "button", role: "button", "aria-disabled": "true", text: "Save as HTML" });
      this.keep = canKeep ? button("Keep in the gallery", () => this.askName()) : null;
      this.naming = el("div", { class: "naming", hidden: true });
      const foot = el("div", { class: "stage-foot row" }, this.jsonl, this.html, this.keep, this.naming);
      place.append(el("div", { class: "stage-head" }, this.heading, this.pill), this.body, this.note, foot);
      this.body.addEventListener("change", () => {
        if (this.player) demo.prefs.set("palette", this.player.palette); // the player has a switch of its own
      });
      document.addEventListener("unmask-prefs", (event) => {
        if (this.player && event.detail.name === "palette") this.player.palette = event.detail.value;
      });
      this.offer();
      if (empty) this.nothing(empty);
    }

    say(state, detail) {
      this.pill.dataset.state = state;
      const place = detail > 1 ? `, number ${detail} in the queue` : detail === 1 ? ", next in the queue" : "";
      this.pill.textContent = `${WORDS[state]}${state === "waiting" ? place : ""}`;
    }

    clear() {
      if (this.player) this.player.pause();
      this.player = null;
      this.closeWord();
      this.body.classList.remove("is-old", "is-preview");
      demo.empty(this.body);
    }

    /* The canvas as it will be, before anything runs. */
    preview(lines, title, note) {
      const focused = document.activeElement;
      if (this.refocus === null && this.body.contains(focused) && focused.dataset.position) this.refocus = Number(focused.dataset.position);
      this.clear();
      this.run = this.at = null;
      const recording = new Unmask.Recording();
      for (const line of lines) recording.push(line);
      this.mount(recording, { live: false });
      this.still();
      this.heading.textContent = title;
      this.note.textContent = note;
      this.say("preview");
      this.offer();
    }

    /* Follows a run of this page; `title` says whose answer it is. */
    follow(run, title) {
      this.run = run;
      this.at = null;
      this.heading.textContent = title;
      this.note.textContent = "";
      this.body.classList.add("is-old"); // what is there until the first lines come
      this.offer();
    }

    /* New lines are in the run's recording. */
    shown(run) {
      if (this.run !== run) return;
      if (this.player && this.player.recording === run.recording) return this.player.update();
      if (run.id !== undefined) {
        this.clear();
        this.mount(run.recording, { live: true });
      }
    }

    finished(run) {
      if (this.run !== run) return;
      if (this.player) this.player.update();
      this.say(run.state);
      if (run.id === undefined) this.nothing(run.state === "failed" ? "Nothing was written." : "Stopped before it began.");
      const delay = demo.prefs.get("delay");
      if (delay > 0 && run.whole) this.note.textContent = `Shown with a pause of ${delay} ms per step; the run itself was not slowed.`;
      if (run.job !== null && run.whole) this.at = `/api/runs/${encodeURIComponent(run.job)}`;
      this.offer();
    }

    /* Refused, or stopped in the queue. */
    nothing(text) {
      this.clear();
      this.run = null;
      this.body.append(el("p", { class: "stage-empty quiet", text }));
    }

    /* A run that is over, or a recording from elsewhere. */
    open(recording, { title, run = null, at = null, note = "" }) {
      this.clear();
      this.run = run;
      this.at = at;
      this.mount(recording, { live: false });
      this.heading.textContent = title;
      this.note.textContent = note;
      this.say(run ? run.state : "open");
      this.offer();
    }

    mount(recording, options) {
      const place = el("div", { class: "stage-player" });
      this.body.append(place);
      const canvas = this.onWord ? { onCell: (position) => this.askWord(position) } : {};
      this.player = new Unmask.Player(place, recording, { palette: demo.prefs.get("palette"), prompt: this.prompts, canvas, ...options });
      if (this.refocus !== null) this.player.view.cell(this.refocus)?.focus({ preventScroll: true });
      this.refocus = null;
    }

    /* Nothing runs in a preview: there is nothing to play, and nothing to announce. */
    still() {
      this.body.classList.add("is-preview");
      for (const part of this.body.querySelectorAll(".um-controls, .um-counts")) part.inert = true;
      const heard = this.body.querySelector(".um-heard");
      heard.setAttribute("aria-live", "off");
      heard.textContent = "";
    }

    /* Only what is possible now is offered; the places stay, so nothing jumps. */
    offer() {
      const whole = Boolean((this.run && this.run.whole) || this.at);
      this.jsonl.disabled = !whole;
      this.html.setAttribute("aria-disabled", String(!this.at));
      if (this.at) {
        this.html.href = `${this.at}.html`;
        this.html.setAttribute("download", "");
      } else this.html.removeAttribute("href");
      if (this.keep) this.keep.disabled = !(this.at && this.run);
      this.naming.hidden = true;
    }

    async saveJsonl() {
      const name = `unmask-${this.run && this.run.job ? this.run.job : "recording"}.jsonl`;
      const text = this.run ? this.run.jsonl : await demo.api.text(`${this.at}.jsonl`);
      demo.saveAs(name, text, "application/x-ndjson");
    }

    askName() {
      const input = el("input", { type: "text", id: "keep-name", maxlength: 60, value: "my-run", autocomplete: "off" });
      const said = el("span", { class: "quiet", role: "status" });
      const done = async () => {
        try {
          await demo.api.post("/api/gallery", { job: this.run.job, name: input.value.trim() });
          said.textContent = "kept";
          document.dispatchEvent(new CustomEvent("unmask-kept"));
        } catch (error) {
          said.textContent = [error.what || error.message, error.expected && `expected ${error.expected}`, error.remedy].filter(Boolean).join(". ");
        }
      };
      input.addEventListener("keydown", (event) => {
        if (event.key === "Enter") done();
      });
      demo.empty(this.naming).append(el("label", { for: "keep-name", text: "Name" }), input, button("Keep", done), said);
      this.naming.hidden = false;
      input.focus();
      input.select();
    }

    // ---- a word in a cell ------------------------------------------------------------------------------------------

    /* Whether a reader is typing a word into a cell. */
    get typing() {
      return Boolean(this.box);
    }

    busy() {
      return this.run !== null && !["finished", "stopped", "failed"].includes(this.run.state);
    }

    askWord(at) {
      const recording = this.player.recording;
      const position = at - recording.run(this.player.request).promptLen;
      if (position < 0 || this.busy()) return;
      const cell = this.player.view.cell(at);
      this.closeWord();
      const input = el("input", { type: "text", id: "cell-word", autocomplete: "off", maxlength: 80, spellcheck: "false" });
      const set = () => {
        const word = input.value.trim();
        this.closeWord();
        if (!word) return cell.focus();
        this.refocus = at;
        return this.onWord(position, word);
      };
      const box = el("div", { class: "word-box", role: "dialog", "aria-label": `Word at place ${position}` },
        el("label", { for: "cell-word", text: `Word at place ${position} of the answer` }),
        el("div", { class: "row" }, input, button("Fix", set)));
      box.addEventListener("keydown", (event) => {
        event.stopPropagation();
        if (event.key === "Enter" && event.target === input) set();
        if (event.key === "Escape") {
          this.closeWord();
          cell.focus();
        }
      });
      this.box = box;
      this.body.append(box);
      this.place(box, cell);
      input.focus();
    }

    place(box, cell) {
      const home = this.body.getBoundingClientRect();
      const at = cell.getBoundingClientRect();
      const left = Math.min(Math.max(at.left - home.left, 0), Math.max(home.width - box.offsetWidth, 0));
      box.style.left = `${left}px`;
      box.style.top = `${at.bottom - home.top + this.body.scrollTop + 6}px`;
      box.scrollIntoView({ block: "nearest" });
    }

    closeWord() {
      if (this.box) this.box.remove();
      this.box = null;
    }
  }

  function button(text, f) {
    return el("button", { type: "button", text, on: { click: f } });
  }

  demo.Stage = Stage;
  demo.stateWords = WORDS;
})(Unmask.demo);
