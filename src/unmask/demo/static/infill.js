/* Infill: a text, spans of it that the model writes anew. The spans are kept beside the text and move with its edits;
   a template "The[[4]] sat" is made of both only when it is sent. */
"use strict";

(function (demo) {
  const el = demo.el;
  const { byId } = demo;
  const DEFAULT = 4; // tokens of a hole put in where nothing was selected
  const MOST = 512;
  const START = "Bob the rabbit lived near a farm. One day Bob found a red kite. Bob was very happy. The rabbit took the kite home.";

  const escaped = (text) => text.replaceAll("[[", "\\[[");

  /* The template of a text with holes. A space before a hole belongs to the hole: most tokenizers join it to the word. */
  function template(text, holes) {
    let out = "";
    let at = 0;
    for (const hole of holes) {
      const start = hole.start > at && text[hole.start - 1] === " " ? hole.start - 1 : hole.start;
      out += `${escaped(text.slice(at, start))}[[${hole.length}]]`;
      at = hole.end;
    }
    return out + escaped(text.slice(at));
  }

  /* The holes after the text was edited: those behind the edit move, those that it touched are gone. */
  function moved(holes, before, after) {
    let from = 0;
    const shorter = Math.min(before.length, after.length);
    while (from < shorter && before[from] === after[from]) from += 1;
    let tail = 0;
    while (tail < shorter - from && before[before.length - 1 - tail] === after[after.length - 1 - tail]) tail += 1;
    const to = before.length - tail;
    const by = after.length - before.length;
    return holes
      .filter((h) => h.end <= from || h.start >= to)
      .map((h) => (h.start >= to && !(h.end <= from) ? { ...h, start: h.start + by, end: h.end + by } : h));
  }

  /* A filled text as parts {text, filled}: what stands between the fixed pieces, in order, is the model's. */
  function parts(answer, text, holes) {
    const out = [];
    let at = 0;
    let from = 0;
    for (const hole of [...holes, null]) {
      const stop = hole ? (hole.start > from && text[hole.start - 1] === " " ? hole.start - 1 : hole.start) : text.length;
      const fixed = text.slice(from, stop);
      const found = hole || fixed === "" ? answer.indexOf(fixed, at) : answer.length - fixed.length;
      if (found < at || answer.slice(found, found + fixed.length) !== fixed) return [{ text: answer, filled: false }];
      if (found > at) out.push({ text: answer.slice(at, found), filled: true });
      out.push({ text: fixed, filled: false });
      at = found + fixed.length;
      from = hole ? hole.end : stop;
    }
    if (at < answer.length) out.push({ text: answer.slice(at), filled: true });
    return out.filter((p) => p.text !== "");
  }

  class Infill {
    constructor(model, form) {
      this.form = form;
      this.run = null;
      this.asked = 0; // previews asked for; a run makes those on their way too late
      this.holes = []; // {start, end, length}, in order, never overlapping
      this.stage = new demo.Stage(byId("infill-stage"), { title: "Canvas", canKeep: model.can_keep });
      this.text = byId("infill-text");
      this.was = this.text.value = START;
      this.listen();
      for (const words of ["found a red kite", "very happy"]) {
        const start = START.indexOf(words);
        this.putHole(start, start + words.length, words.split(" ").length);
      }
      byId("infill-ask").value = (model.examples || [""])[0];
      this.previewLater = demo.later((mine) => mine === this.asked && this.preview(), 350);
    }

    previewSoon() {
      this.asked += 1;
      this.previewLater(this.asked);
    }

    listen() {
      this.text.addEventListener("input", () => this.edited());
      this.text.addEventListener("scroll", () => this.follow());
      this.text.addEventListener("keydown", (event) => {
        if (!event.ctrlKey && !event.metaKey) return;
        const act = { k: () => this.hole(), Enter: () => this.fill() }[event.key];
        if (!act) return;
        event.preventDefault();
        act();
      });
      byId("infill-hole").addEventListener("click", () => this.hole());
      byId("infill-fill").addEventListener("click", () => this.fill());
      byId("infill-stop").addEventListener("click", () => this.stop());
      byId("infill-clear").addEventListener("click", () => this.take(""));
      byId("infill-take").addEventListener("click", () => this.take(byId("infill-out").textContent));
      byId("infill-ask").addEventListener("input", () => this.previewSoon());
    }

    opened() {
      if (!this.stage.player) this.preview();
    }

    // ---- holes -----------------------------------------------------------------------------------------------------

    edited() {
      this.holes = moved(this.holes, this.was, this.text.value);
      this.was = this.text.value;
      this.changed();
    }

    /* Makes a hole of the selection: as long as asked for, else as many tokens as the selection has. */
    async hole() {
      let { selectionStart: start, selectionEnd: end } = this.text;
      const { value } = this.text;
      while (start < end && /\s/.test(value[start])) start += 1;
      while (end > start && /\s/.test(value[end - 1])) end -= 1;
      if (this.holes.some((h) => start < h.end && end > h.start)) return demo.announce("This overlaps a hole");
      if (this.holes.some((h) => h.start === start && h.end === end)) return undefined;
      const asked = byId("infill-length");
      const given = asked.value.trim() === "" ? null : Math.min(Math.max(Math.round(Number(asked.value)) || 1, 1), MOST);
      const words = value.slice(start, end);
      const hole = this.putHole(start, end, given || (words ? Math.max(1, Math.ceil(words.length / 4)) : DEFAULT));
      this.text.focus();
      demo.announce(`Hole ${this.holes.indexOf(hole) + 1} of ${hole.length} tokens`);
      if (given || !words) return undefined;
      const exact = await this.tokensOf(words);
      const still = this.holes.find((h) => h.made === hole.made);
      if (exact && still && still.length === hole.length) this.resize(still, exact);
      return undefined;
    }

    putHole(start, end, length) {
      const hole = { start, end, length, made: performance.now() };
      this.holes = [...this.holes, hole].sort((a, b) => a.start - b.start || a.end - b.end);
      this.changed();
      return hole;
    }

    /* How many tokens a text has, as the model's tokenizer counts them; null if the server does not say. */
    async tokensOf(words) {
      try {
        const { lines } = await demo.api.post("/api/prepare", { template: `${escaped(` ${words}`)}[[1]]`, client: demo.api.client });
        const accepted = lines.find((line) => line.event === "Accepted");
        return Math.min(accepted.canvas.length - accepted.prompt_len - 1, MOST);
      } catch (error) {
        return null; // the estimate stays
      }
    }

    resize(hole, length) {
      hole.length = Math.min(Math.max(length, 1), MOST);
      this.changed();
    }

    changed() {
      this.draw();
      if (this.previewLater) this.previewSoon();
    }

    draw() {
      const { value } = this.text;
      const back = demo.empty(byId("infill-backdrop"));
      let at = 0;
      this.holes.forEach((hole, i) => {
        back.append(value.slice(at, hole.start), el("mark", { class: hole.end > hole.start ? "" : "thin", text: value.slice(hole.start, hole.end), "data-number": i + 1 }));
        at = hole.end;
      });
      back.append(`${value.slice(at)}\n`);
      this.follow();
      demo.empty(byId("infill-holes")).append(...this.holes.map((hole, i) => this.row(hole, i)));
      byId("infill-fill").disabled = this.run !== null || this.holes.length === 0;
    }

    row(hole, i) {
      const words = this.text.value.slice(hole.start, hole.end);
      const id = `hole-${i + 1}`;
      const length = el("input", { id, type: "number", min: 1, max: MOST, step: 1, value: String(hole.length), on: { change: () => {
        this.resize(hole, Math.round(Number(length.value)) || 1);
        byId(id).focus();
      } } });
      const gone = () => {
        this.holes = this.holes.filter((h) => h !== hole);
        this.changed();
        this.text.focus();
      };
      return el("li", { class: "hole" }, el("span", { class: "hole-number", text: String(i + 1) }),
        el("span", { class: "hole-words", text: words ? demo.clip(words, 60) : "put in at the cursor" }),
        el("label", { for: id, text: "tokens" }), length,
        el("button", { type: "button", class: "tiny", text: "×", "aria-label": `Close hole ${i + 1}`, on: { click: gone } }));
    }

    follow() {
      byId("infill-backdrop").scrollTop = this.text.scrollTop;
    }

    take(text) {
      this.stop();
      this.run = null; // what still comes of it is not shown
      byId("infill-stop").disabled = true;
      this.text.value = this.was = text;
      this.holes = [];
      byId("infill-result").hidden = true;
      this.changed();
      this.text.focus();
    }

    // ---- the run ---------------------------------------------------------------------------------------------------

    /* The length is the template's own, so the form's does not take part. */
    body() {
      const ask = byId("infill-ask").value.trim();
      const words = ask === "" ? {} : demo.form() === "raw" ? { prompt: ask } : { messages: [{ role: "user", content: ask }] };
      const { seed, settings } = this.form.values();
      return { ...words, template: template(this.text.value, this.holes), seed, settings, client: demo.api.client };
    }

    async preview() {
      if (this.run || this.holes.length === 0) return;
      this.asked += 1;
      const mine = this.asked;
      try {
        const { lines } = await demo.api.post("/api/prepare", this.body());
        if (mine !== this.asked) return;
        this.stage.preview(lines, "The text with its holes", "");
        this.form.showError(null);
      } catch (error) {
        if (mine === this.asked) demo.refused(this.form, error);
      }
    }

    fill() {
      if (this.run || this.holes.length === 0) return;
      this.asked += 1;
      let body;
      try {
        body = this.body();
      } catch (error) {
        demo.refused(this.form, error);
        return;
      }
      const [text, holes] = [this.text.value, this.holes.map((h) => ({ ...h }))];
      const run = new demo.Run(body, {
        state: (name, detail) => this.run === run && this.entered(name, detail),
        shown: () => this.stage.shown(run),
        done: (error) => this.run === run && this.done(run, text, holes, error),
      });
      this.run = run;
      this.stage.follow(run, "Filling the holes");
      if (demo.narrow.matches) byId("infill-stage").scrollIntoView({ block: "start" });
      run.begin();
    }

    entered(name, detail) {
      this.stage.say(name, detail);
      const working = !["finished", "stopped", "failed"].includes(name);
      byId("infill-fill").disabled = working;
      byId("infill-stop").disabled = !working || name === "stopping" || name === "showing";
      if (name === "waiting") demo.announce(`Waiting, number ${detail} in the queue`);
    }

    done(run, text, holes, error) {
      this.run = null;
      this.draw();
      this.stage.finished(run);
      if (error) return demo.refused(this.form, error);
      this.form.showError(null);
      const out = demo.empty(byId("infill-out"));
      for (const part of parts(run.text, text, holes)) out.append(part.filled ? el("mark", { text: part.text }) : part.text);
      byId("infill-result").hidden = false;
      byId("infill-take").disabled = run.state === "stopped";
      return undefined;
    }

    stop() {
      if (this.run) this.run.stop();
    }
  }

  demo.Infill = Infill;
  demo.infill = { template, moved, parts };
})(Unmask.demo);
