// The canvas: one box per position, decided once and never moved. Enters: a Run, a step, the pieces. Leaves: the drawing,
// with a line that says what the box under the pointer or the keyboard holds.
// Boxes are of equal size while a run is under way (its final tokens are not known); those of a finished run are as wide
// as their final token, so that it reads as text. Text enters the page through textContent only.
(function (root) {
  "use strict";

  const Unmask = (root.Unmask = root.Unmask || {});
  const COLUMNS = 9; // characters of a box of a live run
  const WIDEST = 18; // characters of the widest box of a finished run
  const EDITED = 8; // characters that tokens written on the way may claim of a box
  const WIDE = /[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]|\p{Emoji_Presentation}/u;
  const COMBINING = /\p{Mn}/u;
  const HINT = "Point at a token to see how it settled.";

  /** Columns a text takes in a monospace font. */
  function columnsOf(text) {
    let n = 0;
    for (const c of text) n += COMBINING.test(c) ? 0 : WIDE.test(c) ? 2 : 1;
    return n;
  }

  function make(tag, className, parent) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (parent) parent.append(element);
    return element;
  }

  /** What a box holds, in words; `place` counts from the start of the answer, as constraints do. */
  function describe(place, cell, piece) {
    const name = cell.kind === "prompt" ? "prompt" : `position ${place}`;
    if (cell.kind === "after") return `${name} \u00b7 after the end of the answer`;
    if (cell.remasked) return `${name} \u00b7 masked again at step ${cell.step}`;
    if (cell.id < 0) return `${name} \u00b7 masked`;
    const token = `${name} \u00b7 \u201c${Unmask.label(piece)}\u201d`;
    if (cell.kind === "prompt") return token;
    if (cell.kind === "given") return `${token} \u00b7 given`;
    return `${token} \u00b7 ${sureness(cell.confidence)} \u00b7 step ${cell.step}`;
  }

  function sureness(confidence) {
    if (!Number.isFinite(confidence)) return "chosen last"; // a demoted token
    return confidence < 0 ? `entropy ${(-confidence).toFixed(2)}` : `confidence ${confidence.toFixed(2)}`;
  }

  /**
   * Draws one run into `element`.
   * options: palette "published" | "safe"; columns: characters of a box (then of a finished run as well);
   * onCell(position, info): a box was clicked, or Enter pressed on it; showPrompt: the prompt's tokens as boxes too;
   * layout "grid" (equal boxes) | "text" (as wide as the final token); left out: "text" for a finished run.
   */
  class CanvasView {
    constructor(element, options = {}) {
      this.element = element;
      this.options = options;
      this._run = null;
      this._cells = [];
      this._drawn = []; // what each box shows now, so that only changes touch the page
      element.classList.add("um-canvas");
      this.palette = options.palette || "published";
      this._frame = make("div", "um-frame", element);
      this._grid = make("div", "um-cells", this._frame);
      this._grid.setAttribute("role", "grid");
      this._grid.setAttribute("aria-label", "Canvas of tokens");
      this._detail = make("p", "um-detail", element);
      this._detail.textContent = HINT;
      this._listen();
    }

    get palette() {
      return this.element.dataset.palette;
    }

    set palette(name) {
      this.element.dataset.palette = name === "safe" ? "safe" : "published";
    }

    /** Shows step k of a run. A change of run, or of its length, lays the boxes out anew; nothing else does. */
    show(run, k, pieces) {
      const step = run.seek(k);
      const fresh = run !== this._run || run.length !== this._cells.length;
      this._pieces = pieces;
      if (fresh) this._build(run);
      for (const position of this._changed(run, step, fresh)) this._draw(position);
      this._showOpen(run, run.stats(step).open);
      this._k = step;
      this._over = run.over;
      if (this._pointed !== null) this._say(this._pointed);
    }

    /** The box of a position, or undefined where it is not drawn. */
    cell(position) {
      return this._cells[position];
    }

    /** Brings a position into view, within the canvas only. */
    reveal(position) {
      const cell = this._cells[position];
      if (!cell) return;
      const top = cell.offsetTop;
      const bottom = top + cell.offsetHeight;
      const frame = this._frame;
      if (top < frame.scrollTop || bottom > frame.scrollTop + frame.clientHeight) {
        frame.scrollTop = Math.max(top - frame.clientHeight / 3, 0);
      }
    }

    // --------------------------------------------------------------------------------------------------- laying out

    _build(run) {
      this._run = run;
      this._k = 0;
      this._pointed = null;
      this._detail.textContent = HINT;
      this._open = null;
      this._cells = new Array(run.length);
      this._drawn = new Array(run.length).fill("");
      this._first = this.options.showPrompt ? 0 : run.promptLen;
      this._edges = new Set(run.blocks.map(([start]) => start));
      const text = (this.options.layout || (run.finished && !this.options.columns ? "text" : "grid")) === "text";
      this._grid.classList.toggle("um-text", text);
      this._grid.style.setProperty("--um-columns", String(this.options.columns || COLUMNS));
      this._grid.setAttribute("aria-rowcount", String(this._rows(run).length));
      this._frame.scrollTop = 0;
      this._fill(run, text ? this._widths(run) : null);
      this._stop = this._first < run.length ? this._first : null;
      if (this._stop !== null) this._cells[this._stop].tabIndex = 0;
    }

    /** Rows of the grid for those who hear it: blocks, or stretches of 16 where blocks are single tokens. */
    _rows(run) {
      const blocks = run.blocks.filter(([start, stop]) => stop > run.promptLen && stop - start > 1);
      const rows = this._first < run.promptLen ? [[this._first, run.promptLen]] : [];
      if (blocks.length && blocks[0][0] <= run.promptLen && blocks[blocks.length - 1][1] === run.length) {
        return rows.concat(blocks.map(([start, stop]) => [Math.max(start, run.promptLen), stop]));
      }
      for (let p = run.promptLen; p < run.length; p += 16) rows.push([p, Math.min(p + 16, run.length)]);
      return rows;
    }

    _fill(run, widths) {
      const rows = document.createDocumentFragment();
      this._rows(run).forEach(([start, stop], i) => {
        const row = make("div", "um-row", rows);
        row.setAttribute("role", "row");
        row.setAttribute("aria-rowindex", String(i + 1));
        for (let p = start; p < stop; p++) this._add(run, p, row, widths);
      });
      this._grid.replaceChildren(rows);
    }

    _add(run, position, row, widths) {
      const cell = make("div", "um-cell", row);
      cell.setAttribute("role", "gridcell");
      cell.tabIndex = -1;
      cell.dataset.position = String(position);
      if (this._edges.has(position) && position > this._first && run.length > run.blocks.length + run.promptLen) {
        cell.classList.add("um-edge");
      }
      make("span", "um-chip", cell);
      this._cells[position] = cell;
      if (!widths) return;
      cell.style.setProperty("--um-wide", String(widths[position]));
      const id = run.newest[position];
      const inside = run.finished === null || position < run.finished.end;
      if (inside && id >= 0 && this._pieces[id].includes("\n")) make("span", "um-break", row).setAttribute("role", "presentation");
    }

    /** Characters of every box: its final token, or somewhat more where it held longer ones on the way. */
    _widths(run) {
      const wide = new Map();
      const of = (id) => {
        if (!wide.has(id)) wide.set(id, columnsOf(Unmask.label(this._pieces[id])));
        return wide.get(id);
      };
      const widths = Array.from(run.newest, (id) => (id < 0 ? 2 : Math.min(of(id), WIDEST)));
      for (const [position, id] of run.tokensOf()) widths[position] = Math.max(widths[position], Math.min(of(id), EDITED));
      return widths;
    }

    // ------------------------------------------------------------------------------------------------------ drawing

    /** Positions that may look different: all of a new layout, else what the steps between wrote, and both ends. */
    _changed(run, step, fresh) {
      const changed = new Set();
      const add = (from, to) => {
        for (let p = from; p < to; p++) changed.add(p);
      };
      if (fresh) {
        add(this._first, run.length);
        return changed;
      }
      for (let k = Math.max(Math.min(this._k, step), 1); k <= Math.max(this._k, step); k++) {
        for (const p of run.written(k)) if (p >= this._first) changed.add(p);
      }
      if (run.finished !== null && (this._k === run.steps || step === run.steps || !this._over)) {
        add(Math.max(run.finished.end, this._first), run.length);
      }
      return changed;
    }

    _draw(position) {
      const cell = this._run.cell(position);
      const grade = cell.kind === "new" || cell.kind === "earlier" ? Unmask.level(cell.confidence) : "";
      const now = `${cell.kind} ${cell.id} ${cell.step} ${cell.confidence} ${cell.remasked}`;
      if (now === this._drawn[position]) return;
      this._drawn[position] = now;
      const element = this._cells[position];
      const piece = cell.id < 0 ? "" : this._pieces[cell.id];
      const text = cell.id < 0 || cell.kind === "after" ? "" : Unmask.label(piece);
      if (element.textContent !== text) element.firstChild.textContent = text;
      const data = element.dataset;
      data.kind = cell.kind;
      data.token = String(cell.id);
      data.level = grade;
      data.step = String(cell.step);
      if (cell.remasked) data.remasked = "";
      else if (data.remasked !== undefined) delete data.remasked;
      element.title = describe(position - this._run.promptLen, cell, piece);
    }

    /** The open block is set off; a band, so that no box moves. */
    _showOpen(run, open) {
      const same = open === this._open || (open && this._open && open[0] === this._open[0] && open[1] === this._open[1]);
      if (same) return;
      const whole = open && open[0] <= run.promptLen && open[1] >= run.length;
      for (const [span, on] of [[this._open, false], [whole ? null : open, true]]) {
        if (span) for (let p = Math.max(span[0], run.promptLen); p < span[1]; p++) this._cells[p].classList.toggle("um-open", on);
      }
      this._open = open;
    }

    // ----------------------------------------------------------------------------------------- pointer and keyboard

    _listen() {
      const position = (event) => {
        const cell = event.target.closest ? event.target.closest(".um-cell") : null;
        return cell ? Number(cell.dataset.position) : null;
      };
      this._pointed = null;
      this._grid.addEventListener("pointerover", (event) => this._say(position(event)));
      this._grid.addEventListener("pointerleave", () => this._say(null));
      this._grid.addEventListener("focusin", (event) => {
        this._rove(position(event));
        this._say(position(event));
      });
      this._grid.addEventListener("focusout", () => this._say(null));
      this._grid.addEventListener("click", (event) => this._choose(position(event)));
      this._grid.addEventListener("keydown", (event) => this._key(event, position(event)));
    }

    _say(position) {
      this._pointed = position;
      if (position === null || !this._cells[position]) {
        this._detail.textContent = HINT;
        this._detail.classList.remove("um-told");
        return;
      }
      this._detail.textContent = this._cells[position].title;
      this._detail.classList.add("um-told");
    }

    _choose(position) {
      if (position === null || !this.options.onCell) return;
      this._run.seek(this._k); // another view of the same run may have moved it
      this.options.onCell(position, this._run.cell(position));
    }

    /** Only one box is in the tab order, the last one visited. */
    _rove(position) {
      if (position === null || position === this._stop) return;
      if (this._stop !== null && this._cells[this._stop]) this._cells[this._stop].tabIndex = -1;
      this._cells[position].tabIndex = 0;
      this._stop = position;
    }

    _key(event, position) {
      if (position === null || event.altKey || event.ctrlKey || event.metaKey) return;
      const goals = {
        ArrowLeft: () => position - 1,
        ArrowRight: () => position + 1,
        ArrowUp: () => this._beside(position, -1),
        ArrowDown: () => this._beside(position, 1),
        Home: () => this._first,
        End: () => this._run.length - 1,
      };
      const chooses = event.key === "Enter" || (event.key === " " && this.options.onCell);
      if (!chooses && !goals[event.key]) return;
      event.preventDefault();
      event.stopPropagation();
      if (chooses) this._choose(position);
      else this._focus(goals[event.key]());
    }

    _focus(position) {
      if (this._cells[position]) this._cells[position].focus();
    }

    /** The box above or below: the nearest one in the next line of boxes. */
    _beside(position, direction) {
      const from = this._cells[position];
      const middle = from.offsetLeft + from.offsetWidth / 2;
      let line = null;
      let best = position;
      let distance = Infinity;
      for (let p = position + direction; this._cells[p]; p += direction) {
        const cell = this._cells[p];
        if (cell.offsetTop === from.offsetTop) continue;
        if (line === null) line = cell.offsetTop;
        if (cell.offsetTop !== line) break;
        const away = Math.abs(cell.offsetLeft + cell.offsetWidth / 2 - middle);
        if (away < distance) [best, distance] = [p, away];
      }
      return best;
    }
  }

  Object.assign(Unmask, { CanvasView, describe, columnsOf });
})(globalThis);
