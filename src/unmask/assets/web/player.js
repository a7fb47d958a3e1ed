// The player: a canvas with a scrubber, play and pause, counts, a legend, and words for those who listen.
// Enters: an element and a Recording, finished or still growing (`update()` after lines were pushed). Leaves: the page's
// part, and an event "unmask-step" {id, k} on the element whenever another step is shown.
(function (root) {
  "use strict";

  const Unmask = (root.Unmask = root.Unmask || {});
  const SPEEDS = [
    ["0.25", "\u00bc\u00d7"],
    ["0.5", "\u00bd\u00d7"],
    ["1", "1\u00d7"],
    ["2", "2\u00d7"],
    ["4", "4\u00d7"],
    ["recorded", "as it ran"],
  ];
  const WHOLE = 8000; // milliseconds a replay takes at speed 1, within the two bounds of a single step
  const SHORTEST = 33;
  const LONGEST = 450;
  const QUIET = 2000; // milliseconds between two announcements
  const MARK = /^<[|\uff5c].*[|\uff5c]>$|^<\/?s>$/; // a sign of a chat template
  const LEGEND = [
    ["mask", "", "masked"],
    ["new", "low", "new, below 0.3"],
    ["new", "middle", "new, below 0.7"],
    ["new", "high", "new, sure"],
    ["earlier", "high", "settled earlier"],
    ["given", "", "given"],
  ];
  const ICONS = {
    first: "M4 3h2v10H4zM13 3v10L7 8z",
    back: "M11 3v10L4 8z",
    play: "M4 2.5v11L13 8z",
    pause: "M4 3h3v10H4zM9 3h3v10H9z",
    forward: "M5 3v10l7-5z",
    last: "M10 3h2v10h-2zM3 3v10l6-5z",
  };
  let count = 0; // for ids that labels point to

  function make(tag, className, parent, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  }

  function icon(name) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 16 16");
    svg.setAttribute("aria-hidden", "true");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", ICONS[name]);
    svg.append(path);
    return svg;
  }

  function grouped(number) {
    return Math.round(number).toString().replace(/\B(?=(\d{3})+$)/g, "\u202f");
  }

  function rate(number) {
    return number === 0 || number >= 100 ? grouped(number) : number.toPrecision(3);
  }

  function duration(seconds) {
    return seconds >= 1 ? `${seconds.toPrecision(3)}\u202fs` : `${Math.round(1000 * seconds)}\u202fms`;
  }

  /**
   * options: request: the id shown first; live: a run under way, followed until the user scrubs or pauses;
   * palette: "published" | "safe"; canvas: options of the CanvasView (showPrompt, onCell, layout, columns).
   */
  class Player {
    constructor(element, recording, options = {}) {
      this.element = element;
      this.recording = recording;
      this.options = options;
      this.k = 0;
      this._id = null;
      this._following = Boolean(options.live);
      this._timer = null;
      this._told = { id: null, at: 0, blocks: 0, over: false };
      element.classList.add("um-player");
      this._make();
      this._listen();
      this.update();
    }

    /** The request on show, or null. */
    get request() {
      return this._id;
    }

    get playing() {
      return this._timer !== null;
    }

    get palette() {
      return this.view.palette;
    }

    set palette(name) {
      this.view.palette = name;
      this._legend.dataset.palette = this.view.palette;
      this._safe.checked = this.view.palette === "safe";
    }

    /** Takes in lines that were pushed since; a live run is followed unless the user scrubbed or paused. */
    update() {
      const ids = this.recording.ids();
      this._offer(ids);
      if (this._id === null) {
        const wanted = this.options.request;
        const id = wanted !== undefined && ids.includes(wanted) ? wanted : ids[0];
        if (id === undefined) return;
        this.select(id);
        return;
      }
      const run = this.recording.run(this._id);
      this._show(this._following ? run.steps : this.k, this._following);
      if (run.over) this._following = false; // there is nothing left to follow
      this._bound(run);
      this._announce(run);
    }

    /** Shows another request, at its last step. */
    select(id) {
      this.pause();
      this._id = id;
      this._picker.value = id;
      this._following = Boolean(this.options.live) && !this.recording.run(id).over;
      const run = this.recording.run(id);
      this._showPrompt(run);
      this._prompt.hidden = this.options.prompt === false || Boolean((this.options.canvas || {}).showPrompt) || run.promptLen === 0;
      this._bound(run);
      this._show(run.steps, this._following);
      this._announce(run);
    }

    /** The prompt as text; the marks of its chat template are set back. */
    _showPrompt(run) {
      const parts = [];
      for (const id of run.accepted.canvas.slice(0, run.promptLen)) {
        const piece = id < 0 ? "\u2591" : this.recording.pieces[id];
        if (MARK.test(piece)) parts.push(make("span", "um-mark", null, piece), " ");
        else parts.push(piece);
      }
      this._prompt.replaceChildren(...parts);
    }

    /** Shows step k, as a user's scrubbing does: playing stops, and a live run is no longer followed unless k is its end. */
    seek(k) {
      this.pause();
      const run = this.recording.run(this._id);
      if (!run) return;
      this._show(k);
      this._following = Boolean(this.options.live) && !run.over && this.k === run.steps;
      this._bound(run);
    }

    /** Plays from here, from the start where the end was on show; a live run that caught up is followed. */
    play() {
      const run = this.recording.run(this._id);
      if (!run || this.playing) return;
      if (this.options.live && !run.over && this.k >= run.steps) this._following = true;
      else {
        if (this.k >= run.steps) this._show(0);
        this._schedule(run);
      }
      this._bound(run);
    }

    pause() {
      clearTimeout(this._timer);
      this._timer = null;
      this._following = false;
      if (this._id !== null) this._bound(this.recording.run(this._id));
    }

    /** Play if paused, pause if playing or following. */
    toggle() {
      if (this.playing || this._following) this.pause();
      else this.play();
    }

    // ------------------------------------------------------------------------------------------------ time passes

    _schedule(run) {
      this._timer = setTimeout(() => this._tick(run), this._wait(run));
    }

    _tick(run) {
      this._show(this.k + 1);
      if (this.k < run.steps) {
        this._schedule(run);
        return;
      }
      this._timer = null;
      this._following = Boolean(this.options.live) && !run.over;
      this._bound(run);
      if (run.over) this._tell(this._ending(run));
    }

    /** Milliseconds before the next step. */
    _wait(run) {
      if (this._speed.value === "recorded") {
        const next = Math.min(this.k + 1, run.steps);
        return Math.min(1000 * (run.stats(next).seconds - run.stats(this.k).seconds), QUIET);
      }
      const one = Math.min(Math.max(WHOLE / Math.max(run.steps, 1), SHORTEST), LONGEST);
      return one / Number(this._speed.value);
    }

    _show(k, reveal = true) {
      const run = this.recording.run(this._id);
      this.k = run.seek(k);
      this.view.show(run, this.k, this.recording.pieces);
      this._count(run);
      if (reveal) this._reveal(run); // last: it measures, so what is written after it would be laid out twice
      this.element.dispatchEvent(new CustomEvent("unmask-step", { detail: { id: this._id, k: this.k } }));
    }

    /** Brings what the step wrote into view: the first place in the block that was open then, else the first of all. */
    _reveal(run) {
      const written = Array.from(run.written(this.k)).sort((a, b) => a - b);
      const [start, stop] = run.openAt(Math.max(this.k - 1, 0)) || [run.promptLen, run.length];
      const place = written.find((p) => p >= start && p < stop);
      if (written.length) this.view.reveal(place === undefined ? written[0] : place);
    }

    _bound(run) {
      this._range.max = String(run.steps);
      this._range.disabled = run.steps === 0;
      this._range.value = String(this.k);
      const on = this.playing || this._following;
      if (this._playing === on) return;
      this._playing = on;
      this._play.replaceChildren(icon(on ? "pause" : "play"), make("span", "um-word", null, on ? "Pause" : "Play"));
      this._play.setAttribute("aria-label", on ? "Pause" : "Play");
    }

    /** The numbers under the scrubber. */
    _count(run) {
      const s = run.stats(this.k);
      const total = Math.max(run.steps, 1);
      this._range.value = String(this.k);
      this._range.setAttribute("aria-valuetext", `step ${this.k} of ${run.steps}, ${s.settled} settled, ${s.holes} masked`);
      this._range.style.setProperty("--um-share", `${(100 * this.k) / total}%`);
      this._place.textContent = `${this.k} / ${run.steps}`;
      const values = {
        nfe: grouped(s.nfe),
        perForward: s.nfe ? s.tokensPerForward.toFixed(2) : "\u2013",
        perSecond: s.seconds > 0 ? rate(s.tokensPerSecond) : "\u2013",
        rows: grouped(s.rows),
        seconds: duration(s.seconds),
        settled: `${s.settled} of ${s.settled + s.holes}`,
      };
      for (const [name, value] of Object.entries(values)) this._values[name].textContent = value;
      this._state.textContent = this._status(run);
    }

    _status(run) {
      if (run.failed) return `Failed: ${run.failed.error}`;
      if (run.finished && this.k === run.steps) {
        const why = { stop: "Finished", length: "Finished: the canvas is full", cancelled: "Stopped" };
        return why[run.finished.reason] || "Finished";
      }
      if (!run.over && this.k === run.steps) return "Running";
      return this.k === 0 ? "Before the first step" : "";
    }

    // -------------------------------------------------------------------------------------- words for who listens

    _announce(run) {
      if (this._told.id !== this._id) {
        this._told = { id: this._id, at: 0, blocks: run.done.length, over: run.over };
        const places = run.length - run.promptLen;
        this._tell(run.over ? this._ending(run) : `Started: ${places} positions, all masked but ${run.given} given.`);
        return;
      }
      const ready = run.failed !== null || run.answer !== null || this.recording.complete; // the answer comes last
      if (run.over && ready && !this._told.over) {
        this._told.over = true;
        this._tell(this._ending(run));
        return;
      }
      if (run.over || Date.now() - this._told.at < QUIET) return;
      const s = run.stats(run.steps);
      const blocks = run.done.length > this._told.blocks ? `${run.done.length} of ${run.blocks.length} blocks done, ` : "";
      this._told.blocks = run.done.length;
      this._tell(`${blocks}step ${run.steps}, ${s.settled} settled, ${s.holes} masked.`);
    }

    _ending(run) {
      if (run.failed) return `Failed: ${run.failed.error}`;
      const answer = this.recording.answers[run.id];
      const text = answer ? answer.text : this.recording.text(run.id, run.steps);
      return `${run.finished.reason === "cancelled" ? "Stopped" : "Finished"} after ${run.steps} steps. ${text}`;
    }

    _tell(words) {
      this._told.at = Date.now();
      this._live.textContent = words;
    }

    // ---------------------------------------------------------------------------------------------------- the parts

    _make() {
      const id = `um-${++count}`;
      const top = make("div", "um-top", this.element);
      const pick = make("label", "um-pick", top, "Answer ");
      this._picker = make("select", "", pick);
      this._pick = pick;
      pick.hidden = true;
      this._prompt = make("p", "um-prompt", this.element);
      this._prompt.dir = "auto";
      this.view = new Unmask.CanvasView(make("div", "", this.element), { ...this.options.canvas, palette: this.options.palette });
      this._makeControls(id);
      this._makeCounts();
      this._makeLegend();
      this._live = make("div", "um-heard", this.element);
      this._live.setAttribute("aria-live", "polite");
      this._live.setAttribute("role", "status");
      this.palette = this.options.palette || "published";
    }

    _makeControls(id) {
      const bar = make("div", "um-controls", this.element);
      bar.setAttribute("role", "group");
      bar.setAttribute("aria-label", "Playback");
      const buttons = make("div", "um-buttons", bar);
      const button = (name, words, act) => {
        const b = make("button", `um-button um-${name}`, buttons);
        b.type = "button";
        b.append(icon(name));
        b.setAttribute("aria-label", words);
        b.title = words;
        b.addEventListener("click", act);
        return b;
      };
      button("first", "First step", () => this.seek(0));
      button("back", "One step back", () => this.seek(this.k - 1));
      this._play = button("play", "Play", () => this.toggle());
      this._play.removeAttribute("title");
      button("forward", "One step forward", () => this.seek(this.k + 1));
      button("last", "Last step", () => this.seek(Infinity));
      const slide = make("div", "um-slide", bar);
      const words = make("label", "um-step", slide, "Step");
      words.htmlFor = id;
      this._range = make("input", "um-range", slide);
      Object.assign(this._range, { type: "range", min: "0", max: "0", step: "1", value: "0", id });
      this._place = make("output", "um-place", slide, "0 / 0");
      this._place.htmlFor = id;
      const speed = make("label", "um-speed", bar, "Speed ");
      this._speed = make("select", "", speed);
      for (const [value, name] of SPEEDS) make("option", "", this._speed, name).value = value;
      this._speed.value = "1";
    }

    _makeCounts() {
      const list = make("dl", "um-counts", this.element);
      this._values = {};
      for (const [name, words] of [
        ["nfe", "forwards"],
        ["settled", "settled"],
        ["perForward", "tokens / forward"],
        ["perSecond", "tokens / second"],
        ["rows", "rows computed"],
        ["seconds", "compute time"],
      ]) {
        const pair = make("div", "um-count", list);
        make("dt", "", pair, words);
        this._values[name] = make("dd", "", pair, "\u2013");
        this._values[name].dataset.count = name;
      }
      this._values.perForward.title = "Tokens of the answer; those after its end do not count";
      this._values.rows.title = "Query rows times layers, over all forwards so far";
    }

    _makeLegend() {
      const foot = make("div", "um-foot", this.element);
      this._legend = make("ul", "um-legend", foot);
      this._legend.setAttribute("aria-label", "Legend");
      for (const [kind, grade, words] of LEGEND) {
        const item = make("li", "", this._legend);
        const sample = make("span", "um-cell um-sample", item);
        make("span", "um-chip", sample);
        Object.assign(sample.dataset, { kind, level: grade });
        sample.setAttribute("aria-hidden", "true");
        make("span", "", item, words);
      }
      this._state = make("span", "um-state", foot);
      const label = make("label", "um-safe", foot);
      this._safe = make("input", "", label);
      this._safe.type = "checkbox";
      make("span", "", label, "Colour-blind safe");
    }

    _offer(ids) {
      if (ids.length === this._picker.options.length) return;
      this._picker.replaceChildren(...ids.map((id, i) => {
        const option = make("option", "", null, `${i + 1} of ${ids.length}`);
        option.value = id;
        return option;
      }));
      if (this._id !== null) this._picker.value = this._id;
      this._pick.hidden = ids.length < 2;
    }

    _listen() {
      this._picker.addEventListener("change", () => this.select(this._picker.value));
      this._range.addEventListener("input", () => this.seek(Number(this._range.value)));
      this._safe.addEventListener("change", () => {
        this.palette = this._safe.checked ? "safe" : "published";
      });
      this.element.addEventListener("keydown", (event) => this._key(event));
    }

    /** Space plays and pauses; arrows step; Home and End jump. Boxes, buttons and lists keep their own keys. */
    _key(event) {
      if (this._id === null || event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey) return;
      const tag = event.target.tagName;
      if (tag === "SELECT" || tag === "TEXTAREA" || (tag === "INPUT" && event.target.type !== "range")) return;
      if (event.key === " " && tag === "BUTTON") return;
      const acts = {
        " ": () => this.toggle(),
        ArrowLeft: () => this.seek(this.k - 1),
        ArrowRight: () => this.seek(this.k + 1),
        Home: () => this.seek(0),
        End: () => this.seek(Infinity),
      };
      if (!acts[event.key]) return;
      event.preventDefault();
      acts[event.key]();
    }
  }

  Unmask.Player = Player;
})(globalThis);
