// A recording, folded in the browser: the same lines as a saved .jsonl, an SSE stream or an exported page.
// Enters: parsed JSON lines, one by one. Leaves: the state of every position after step k, counts, and the text.
// No DOM here, so it also runs in node. `core/events.py: fold` is the definition; tests compare the two step by step.
(function (root) {
  "use strict";

  const FORMAT = "unmask-recording";
  const VERSION = 1;
  const HOLE = "\u2591";

  // ------------------------------------------------------------------ how one token looks (mirrors sinks/cells.py)

  const LOW = 0.3;
  const HIGH = 0.7;
  const END = /^(?:<\|(?:eos|endoftext|end_of_text|eot_id|im_end)\|>|<\/s>)$/;
  const VISIBLE = { "\n": "\u21b5", "\r": "\u2190", "\t": "\u21e5", " ": "\u2423" };
  const NOT_SPACE = /[^\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]/u; // as str.strip()
  const STRANGE = /^[\p{Cc}\p{Cs}\p{Co}\p{Cn}]$/u;
  const UNSEEN = /^[\p{Cf}\p{Zl}\p{Zp}]$/u;

  /** A token as one visible word: the space before a word is dropped, other white space and control signs are drawn. */
  function label(piece) {
    if (END.test(piece)) return "\u220e";
    const word = piece.startsWith(" ") && NOT_SPACE.test(piece) ? piece.slice(1) : piece;
    let shown = "";
    for (const c of word) {
      if (c in VISIBLE) shown += VISIBLE[c];
      else if (STRANGE.test(c)) shown += "?";
      else if (!UNSEEN.test(c)) shown += c;
    }
    return shown || "\u2205";
  }

  /** A confidence from 0 to 1: a negative one is a negative entropy, its exponential 1 / choices left. */
  function share(confidence) {
    if (Number.isNaN(confidence)) return 0;
    return confidence < 0 ? Math.exp(confidence) : Math.min(confidence, 1);
  }

  /** The level of a confidence: "low", "middle" or "high". */
  function level(confidence) {
    const value = share(confidence);
    return value < LOW ? "low" : value < HIGH ? "middle" : "high";
  }

  /** One line of a recording. Early ones, made by Python's JSON, also hold NaN and Infinity, which JSON.parse refuses. */
  function parse(text) {
    try {
      return JSON.parse(text);
    } catch (error) {
      const known = { NaN: "null", Infinity: "1e999", "-Infinity": "null" };
      return JSON.parse(text.replace(/"(?:[^"\\]|\\.)*"|-?Infinity|NaN/g, (part) => known[part] || part));
    }
  }

  // ------------------------------------------------------------------------------------------------------- one run

  /** One request: what was accepted, every step's writes, and a cursor that moves between steps in O(change). */
  class Run {
    constructor(event) {
      this.id = event.id;
      this.accepted = event;
      this.blocks = event.blocks;
      this.promptLen = event.prompt_len;
      this.length = event.canvas.length;
      this.finished = null;
      this.failed = null;
      this.answer = null; // the answer as it was printed, from the recording's "answers"
      this.done = []; // finished blocks: {start, stop, steps, k}
      this._writes = [null]; // step -> {positions, ids, confidences}
      this._undo = [null]; // step -> what it overwrote, made the first time the cursor passes
      this._sums = [{ nfe: 0, rows: 0, headRows: 0, seconds: 0, filled: 0, open: null }];
      this._ids = Int32Array.from(event.canvas);
      this._at = new Int32Array(this.length); // the step that last wrote a position; 0 = as accepted
      this._confidence = new Float64Array(this.length).fill(1);
      this._k = 0;
      this._newest = Int32Array.from(event.canvas); // ids after the last step, whatever the cursor shows
      this._visible = null;
      this.given = 0;
      for (let p = this.promptLen; p < this.length; p++) {
        if (event.fixed[p]) this.given++;
        if (event.canvas[p] >= 0) this._sums[0].filled++;
      }
    }

    /** Steps so far. */
    get steps() {
      return this._writes.length - 1;
    }

    /** Whether the run is over. */
    get over() {
      return this.finished !== null || this.failed !== null;
    }

    push(event) {
      if (event.event === "Stepped") this._step(event);
      else if (event.event === "Opened") this._sums[this.steps].open = [event.start, event.stop];
      else if (event.event === "BlockDone") {
        this.done.push({ start: event.start, stop: event.stop, steps: event.steps, k: this.steps });
      } else if (event.event === "Finished") this.finished = event;
      else if (event.event === "Failed") this.failed = event;
      this._visible = null;
    }

    _step(event) {
      const n = event.writes.length;
      const step = { positions: new Int32Array(n), ids: new Int32Array(n), confidences: new Float64Array(n) };
      const last = this._sums[this.steps];
      let filled = last.filled;
      event.writes.forEach(([position, token, confidence, kind], i) => {
        const id = kind === 3 ? -1 : token;
        step.positions[i] = position;
        step.ids[i] = id;
        step.confidences[i] = confidence === null ? -Infinity : confidence; // JSON has no infinities
        if (position >= this.promptLen) filled += (id >= 0) - (this._newest[position] >= 0);
        this._newest[position] = id;
      });
      this._writes.push(step);
      this._undo.push(null);
      this._sums.push({
        nfe: event.nfe,
        rows: last.rows + event.work.row_layers,
        headRows: last.headRows + event.work.head_rows,
        seconds: last.seconds + event.work.seconds,
        filled,
        open: last.open,
      });
    }

    /** Positions that step k wrote. */
    written(k) {
      return k > 0 && k <= this.steps ? this._writes[k].positions : [];
    }

    /** The forwards made by step k (the engine's count; what a position's `step` says). */
    nfe(k) {
      return this._sums[k].nfe;
    }

    /** The block that the events up to step k opened last: [start, stop], or null. */
    openAt(k) {
      return this._sums[k].open;
    }

    /** Moves the cursor to step k. */
    seek(k) {
      const goal = Math.min(Math.max(Math.trunc(k), 0), this.steps);
      while (this._k < goal) this._forward(++this._k);
      while (this._k > goal) this._back(this._k--);
      return goal;
    }

    _forward(k) {
      const { positions, ids, confidences } = this._writes[k];
      const n = positions.length;
      const undo = this._undo[k] ? null : { ids: new Int32Array(n), at: new Int32Array(n), confidences: new Float64Array(n) };
      for (let i = 0; i < n; i++) {
        const p = positions[i];
        if (undo) {
          undo.ids[i] = this._ids[p];
          undo.at[i] = this._at[p];
          undo.confidences[i] = this._confidence[p];
        }
        this._ids[p] = ids[i];
        this._at[p] = k;
        this._confidence[p] = confidences[i];
      }
      if (undo) this._undo[k] = undo;
    }

    _back(k) {
      const { positions } = this._writes[k];
      const undo = this._undo[k];
      for (let i = positions.length - 1; i >= 0; i--) {
        const p = positions[i];
        this._ids[p] = undo.ids[i];
        this._at[p] = undo.at[i];
        this._confidence[p] = undo.confidences[i];
      }
    }

    /** From where on positions lie behind the answer at step k; the canvas length while that is not known. */
    endAt(k) {
      return this.finished !== null && k >= this.steps ? this.finished.end : this.length;
    }

    /** One position at the cursor: {id, step, confidence, kind, remasked}. */
    cell(position) {
      const id = this._ids[position];
      const at = this._at[position];
      const fresh = at > 0 && at === this._k;
      let kind = id < 0 ? "mask" : fresh ? "new" : "earlier";
      if (position < this.promptLen) kind = "prompt";
      else if (position >= this.endAt(this._k)) kind = "after";
      else if (this.accepted.fixed[position]) kind = "given";
      const remasked = id < 0 && fresh;
      return { id, step: this._sums[at].nfe, confidence: this._confidence[position], kind, remasked };
    }

    /** Every position after step k. */
    state(k) {
      this.seek(k);
      return Array.from({ length: this.length }, (_, p) => this.cell(p));
    }

    /** Counts as of step k. Tokens are those of the answer; once its end is known, those behind it do not count. */
    stats(k) {
      const step = Math.min(Math.max(Math.trunc(k), 0), this.steps);
      const sums = this._sums[step];
      const answer = this.length - this.promptLen;
      const final = this.finished !== null && step === this.steps;
      let tokens = this.finished === null ? sums.filled - this.given : this._visibleTokens()[step];
      if (final && this.answer !== null) tokens = this.answer.completion_tokens;
      const nfe = final ? this.finished.nfe : sums.nfe;
      return {
        nfe,
        tokens,
        tokensPerForward: nfe > 0 ? tokens / nfe : 0,
        tokensPerSecond: sums.seconds > 0 ? tokens / sums.seconds : 0,
        rows: sums.rows,
        headRows: sums.headRows,
        seconds: sums.seconds,
        settled: sums.filled,
        holes: answer - sums.filled,
        open: final || sums.filled === answer ? null : sums.open,
      };
    }

    /** Written tokens before the end of the answer, after every step. */
    _visibleTokens() {
      if (this._visible !== null) return this._visible;
      const end = this.finished.end;
      const holds = new Uint8Array(this.length);
      const counts = [0];
      for (let k = 1; k <= this.steps; k++) {
        const { positions, ids } = this._writes[k];
        let count = counts[k - 1];
        for (let i = 0; i < positions.length; i++) {
          const p = positions[i];
          if (p < this.promptLen || p >= end || this.accepted.fixed[p]) continue;
          count += (ids[i] >= 0) - holds[p];
          holds[p] = ids[i] >= 0 ? 1 : 0;
        }
        counts.push(count);
      }
      this._visible = counts;
      return counts;
    }

    /** Every token id that a position holds at some step, for deciding how wide its box is. */
    *tokensOf() {
      for (let k = 1; k <= this.steps; k++) {
        const { positions, ids } = this._writes[k];
        for (let i = 0; i < positions.length; i++) if (ids[i] >= 0) yield [positions[i], ids[i], k];
      }
    }

    /** The ids after the last step so far. */
    get newest() {
      return this._newest;
    }
  }

  // -------------------------------------------------------------------------------------------------- the recording

  /** All runs of one recording, grown line by line. */
  class Recording {
    constructor() {
      this.header = null;
      this.pieces = Object.create(null);
      this.answers = Object.create(null);
      this.complete = false;
      this._runs = new Map();
    }

    /** Takes one parsed line; the id of the request it changed, or null. Lines it does not know pass harmlessly. */
    push(line) {
      if (line.format !== undefined) return this._begin(line);
      if (line.piece !== undefined) Object.assign(this.pieces, line.piece);
      else if (line.answers !== undefined) this._answer(line.answers);
      else if (line.end !== undefined && line.event === undefined) this.complete = true;
      else if (line.event === "Accepted") {
        this._runs.set(line.id, new Run(line));
        return line.id;
      } else if (line.event !== undefined && this._runs.has(line.id)) {
        this._runs.get(line.id).push(line);
        return line.id;
      }
      return null;
    }

    _begin(line) {
      if (line.format !== FORMAT) throw new Error(`Not a recording: expected format "${FORMAT}", got "${line.format}".`);
      if (line.version !== VERSION) {
        throw new Error(`A recording of version ${line.version}; this page reads version ${VERSION}.`);
      }
      this.header = line;
      return null;
    }

    _answer(answers) {
      for (const [id, answer] of Object.entries(answers)) {
        this.answers[id] = answer;
        if (this._runs.has(id)) this._runs.get(id).answer = answer;
      }
    }

    ids() {
      return [...this._runs.keys()];
    }

    run(id) {
      return this._runs.get(id);
    }

    /** The answer after step k: its pieces up to its end, holes as a light block. */
    text(id, k) {
      const run = this.run(id);
      const step = run.seek(k);
      let text = "";
      for (let p = run.promptLen; p < run.endAt(step); p++) {
        text += run._ids[p] < 0 ? HOLE : this.pieces[run._ids[p]];
      }
      return text;
    }

    /** The prompt, its pieces joined. */
    prompt(id) {
      const run = this.run(id);
      let text = "";
      for (let p = 0; p < run.promptLen; p++) text += run.accepted.canvas[p] < 0 ? HOLE : this.pieces[run.accepted.canvas[p]];
      return text;
    }
  }

  root.Unmask = Object.assign(root.Unmask || {}, { Recording, Run, label, level, share, parse, VERSION });
})(globalThis);
