/* Race: one prompt, two or three strategies. The lanes run in turn, each alone on the engine, so that every clock is its
   own; then they play together, each step at the moment at which it happened. */
"use strict";

(function (demo) {
  const el = demo.el;
  const { byId } = demo;
  const OWN = "the settings beside";
  const SHOW = 6000; // milliseconds that the slowest lane takes when played together

  class Lane {
    constructor(race, number, preset) {
      this.race = race;
      this.number = number;
      this.run = null;
      const id = `lane-${number}`;
      this.pick = el("select", { id }, ...race.choices.map((p, i) => el("option", { value: String(i), text: p.name })));
      this.pick.value = String(preset);
      this.meaning = el("p", { class: "quiet" });
      this.drop = el("button", { type: "button", class: "tiny", text: "×", "aria-label": `Remove lane ${number}`, on: { click: () => race.remove(this) } });
      this.label = el("label", { for: id });
      this.row = el("div", { class: "lane-row" }, this.label, this.pick, this.drop, this.meaning);
      this.pick.addEventListener("change", () => this.say());
      this.say();
    }

    get preset() {
      return this.race.choices[Number(this.pick.value)];
    }

    say() {
      this.meaning.textContent = demo.clip(this.preset.meaning, 110);
      this.meaning.title = this.preset.meaning;
    }

    /* The lane's part of the stage. */
    card() {
      this.name = this.preset.name;
      this.body = el("div", { class: "lane-body" });
      this.pill = el("span", { class: "pill", "data-state": "idle", text: "waits for its turn" });
      this.final = el("p", { class: "prose lane-text" });
      this.save = el("button", { type: "button", class: "tiny", text: "JSONL", disabled: true, "aria-label": `Save ${this.name} as JSONL`, on: { click: () => demo.saveAs(`unmask-${this.run.job}.jsonl`, this.run.jsonl, "application/x-ndjson") } });
      this.html = el("a", { class: "button tiny", role: "button", "aria-disabled": "true", text: "HTML", "aria-label": `Save ${this.name} as HTML` });
      this.player = null;
      this.element = el("section", { class: "lane", "aria-label": `Lane ${this.number}: ${this.name}` },
        el("div", { class: "lane-head" }, el("h3", { text: this.name }), this.pill), this.body,
        el("h4", { text: "Final text" }), this.final, el("div", { class: "row" }, this.save, this.html));
      return this.element;
    }

    go(body) {
      return new Promise((resolve) => {
        this.run = new demo.Run({ ...body, ...this.wants(), alone: true }, {
          state: (name, detail) => this.entered(name, detail),
          shown: () => this.shown(),
          done: (error) => resolve(error),
        });
        this.run.begin();
      });
    }

    wants() {
      const values = this.race.form.values();
      return this.preset.own ? values : { ...values, settings: this.preset.settings };
    }

    entered(name, detail) {
      this.pill.dataset.state = name;
      this.pill.textContent = name === "waiting" ? `waiting, number ${detail} in the queue` : demo.stateWords[name];
    }

    shown() {
      if (this.run.id === undefined) return;
      if (this.player) this.player.update();
      else {
        this.player = new Unmask.Player(this.body, this.run.recording, {
          live: true, prompt: false, palette: demo.prefs.get("palette"), canvas: { layout: "grid" }, // all lanes alike, however fast
        });
        this.race.explain(this.player);
      }
    }

    /* What the lane needed, once it is over. */
    finish() {
      this.save.disabled = !this.run.whole;
      if (this.run.whole) {
        this.html.href = `/api/runs/${encodeURIComponent(this.run.job)}.html`;
        this.html.setAttribute("download", "");
        this.html.setAttribute("aria-disabled", "false");
      }
      if (this.run.id === undefined) return;
      const done = this.run.recording.run(this.run.id);
      this.stats = done.stats(done.steps);
      this.steps = Array.from({ length: done.steps + 1 }, (_, k) => done.stats(k).seconds);
    }
  }

  class Race {
    constructor(model, form) {
      this.form = form;
      this.choices = [...model.presets, { name: OWN, meaning: "All that stands in the settings panel.", own: true }];
      this.lanes = [];
      this.running = false;
      this.stopped = false;
      this.frame = 0;
      this.stage = byId("race-stage");
      this.prompt = byId("race-prompt");
      this.prompt.value = (model.examples || [""])[0];
      this.add = el("button", { type: "button", class: "plain", text: "Add a third lane", on: { click: () => this.put(2) } });
      byId("race-start").parentElement.append(this.add);
      this.put(0);
      this.put(1);
      this.listen();
      this.welcome();
    }

    listen() {
      byId("race-start").addEventListener("click", () => this.start());
      byId("race-stop").addEventListener("click", () => this.stop());
      this.prompt.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        this.start();
      });
      document.addEventListener("unmask-prefs", (event) => {
        if (event.detail.name !== "palette") return;
        for (const lane of this.lanes.filter((l) => l.player)) {
          lane.player.palette = event.detail.value;
          this.explain(lane.player);
        }
      });
    }

    put(preset) {
      this.lanes.push(new Lane(this, this.lanes.length + 1, Math.min(preset, this.choices.length - 1)));
      this.number();
    }

    remove(lane) {
      this.lanes = this.lanes.filter((l) => l !== lane);
      this.number();
      this.add.focus();
    }

    number() {
      this.lanes.forEach((lane, i) => {
        lane.number = i + 1;
        lane.label.textContent = `Lane ${i + 1}`;
        lane.drop.hidden = this.lanes.length < 3;
        lane.drop.setAttribute("aria-label", `Remove lane ${i + 1}`);
      });
      demo.empty(byId("race-lanes")).append(...this.lanes.map((l) => l.row));
      this.add.hidden = this.lanes.length > 2;
    }

    welcome() {
      demo.empty(this.stage).append(el("div", { class: "empty" }, el("p", { text: "The lanes run in turn, with nothing else beside them, so that their clocks are fair." }),
        el("p", { class: "quiet", text: "You will see each canvas settle, then all of them on one clock, and where their texts differ." })));
    }

    // ---- the race --------------------------------------------------------------------------------------------------

    async start() {
      if (this.running || !this.prompt.value.trim()) return;
      let body;
      try {
        body = this.body();
      } catch (error) {
        demo.refused(this.form, error);
        return;
      }
      this.busy(true);
      this.build();
      let error = null;
      for (const lane of this.lanes) {
        if (this.stopped || error) break;
        demo.announce(`Lane ${lane.number}, ${lane.name}, runs`);
        error = await lane.go(body);
        lane.finish();
        this.table();
      }
      this.busy(false);
      if (error) demo.refused(this.form, error);
      else this.form.showError(null);
      if (!error && !this.stopped) this.over();
    }

    body() {
      const text = this.prompt.value;
      this.form.values(); // what cannot be read is said before anything runs
      return demo.form() === "raw" ? { prompt: text, client: demo.api.client } : { messages: [{ role: "user", content: text }], client: demo.api.client };
    }

    build() {
      cancelAnimationFrame(this.frame);
      this.stopped = false;
      this.together = el("button", { type: "button", class: "main", text: "Play together", disabled: true, on: { click: () => this.play() } });
      this.clock = el("output", { class: "clock", text: "" });
      this.result = el("div", { class: "race-table" });
      this.same = el("p", { class: "quiet same" });
      this.legend = el("div", { class: "legend-place" });
      const cards = el("div", { class: "lanes", "data-lanes": this.lanes.length }, ...this.lanes.map((l) => l.card()));
      for (const lane of this.lanes) lane.stats = lane.run = null;
      demo.empty(this.stage).append(el("div", { class: "stage-head" }, el("h2", { text: demo.clip(this.prompt.value, 120) })),
        this.result, el("div", { class: "row race-bar" }, this.together, this.clock), cards, this.same, this.legend);
      this.table();
      this.stage.scrollIntoView({ block: "start" });
    }

    /* One legend for all lanes. */
    explain(player) {
      this.legend.replaceChildren(player.element.querySelector(".um-legend").cloneNode(true));
    }

    busy(busy) {
      this.running = busy;
      byId("race-start").disabled = busy;
      byId("race-stop").disabled = !busy;
      this.add.disabled = busy;
      for (const lane of this.lanes) lane.pick.disabled = lane.drop.disabled = busy;
    }

    stop() {
      this.stopped = true;
      for (const lane of this.lanes) if (lane.run) lane.run.stop();
    }

    // ---- what came of it -------------------------------------------------------------------------------------------

    /* One row per lane: time, forwards, tokens per second; the best of a column is named, not only tinted. */
    table() {
      const done = this.lanes.filter((l) => l.stats);
      const least = (f) => Math.min(...done.map(f));
      const most = (f) => Math.max(...done.map(f));
      const fast = done.length > 1 ? least((l) => l.stats.seconds) : null;
      const few = done.length > 1 ? least((l) => l.stats.nfe) : null;
      const rate = done.length > 1 ? most((l) => l.stats.tokensPerSecond) : null;
      const cell = (text, best) => el("td", { class: best ? "best" : null }, text, best ? el("span", { class: "best-word", text: " best" }) : null);
      const row = (lane) => {
        const s = lane.stats;
        const share = s && done.length ? s.seconds / most((l) => l.stats.seconds) : 0;
        const bar = el("span", { class: "bar", "aria-hidden": "true" });
        bar.style.inlineSize = `${Math.max(share * 100, s ? 1 : 0)}%`;
        return el("tr", {}, el("th", { scope: "row" }, lane.name, el("span", { class: "bar-line" }, bar)),
          ...(s ? [cell(s.seconds.toFixed(3), s.seconds === fast), cell(String(s.nfe), s.nfe === few), cell(String(s.tokens)), cell(s.tokensPerSecond.toFixed(0), s.tokensPerSecond === rate)]
            : [cell("–"), cell("–"), cell("–"), cell("–")]));
      };
      const head = ["Strategy", "Seconds", "NFE", "Tokens", "Tokens/s"].map((text) => el("th", { scope: "col", text }));
      demo.empty(this.result).append(el("table", {}, el("caption", { class: "unseen", text: "Time, forwards and tokens of each lane" }),
        el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...this.lanes.map(row))));
    }

    over() {
      const texts = this.lanes.map((l) => l.run.text);
      this.lanes.forEach((lane, i) => {
        const parts = demo.compare(texts[i], texts.filter((_, j) => j !== i));
        demo.empty(lane.final).append(...parts.map((p) => (p.differs ? el("mark", { class: "differs", text: p.text }) : p.text)));
        if (!texts[i]) lane.final.textContent = "(no text)";
      });
      const same = texts.every((t) => t === texts[0]);
      this.together.disabled = false;
      const best = [...this.lanes].sort((a, b) => a.stats.seconds - b.stats.seconds)[0];
      demo.announce(`The race is over. ${best.name} was fastest with ${best.stats.nfe} forwards. The texts ${same ? "are the same" : "differ"}.`);
      this.same.textContent = same ? "All final texts are the same." : "Words that not all lanes share are underlined.";
      this.play();
    }

    /* All lanes on one clock, slowed down or sped up so that the slowest is easy to watch. */
    play() {
      cancelAnimationFrame(this.frame);
      const longest = Math.max(...this.lanes.map((l) => l.stats.seconds), 1e-9);
      const began = performance.now();
      const factor = SHOW / 1000 / longest;
      const pace = factor >= 1 ? `slowed down ${times(factor)}` : `sped up ${times(1 / factor)}`;
      for (const lane of this.lanes) lane.player.seek(0);
      const tick = (now) => {
        const t = (Math.max(now - began, 0) / SHOW) * longest;
        for (const lane of this.lanes) {
          const k = lastBefore(lane.steps, t);
          if (lane.player.k !== k) lane.player.seek(k);
        }
        this.clock.textContent = `${Math.min(t, longest).toFixed(3)} s of ${longest.toFixed(3)} s, ${pace}`;
        if (t < longest) this.frame = requestAnimationFrame(tick);
      };
      this.frame = requestAnimationFrame(tick);
    }
  }

  const times = (factor) => `${factor < 10 ? factor.toFixed(1) : Math.round(factor)} times`;

  /* The last step that was done by time t. */
  function lastBefore(times, t) {
    let [low, high] = [0, times.length - 1];
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (times[middle] <= t) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  demo.Race = Race;
})(Unmask.demo);
