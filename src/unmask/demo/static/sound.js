/* Whether the lines of a file from disk are those of a recording. What this server sends is; a file may be damaged or
   made by hand, and would otherwise fail somewhere in the middle of drawing, or draw a million boxes. */
"use strict";

(function (demo) {
  const MOST = 1 << 16; // positions of a canvas that a page still draws

  const isWhole = (x, least, most) => Number.isInteger(x) && x >= least && x <= most;
  const isTable = (x) => typeof x === "object" && x !== null && !Array.isArray(x);
  const isSpan = (x, length) => isWhole(x[0], 0, length) && isWhole(x[1], x[0], length);

  function need(true_, words) {
    if (!true_) throw new Error(words);
  }

  class Sound {
    constructor() {
      this.lengths = new Map(); // request -> positions
      this.used = new Set(); // tokens that have to have a piece
    }

    /* Throws what is wrong with one parsed line. */
    line(line) {
      need(isTable(line), "an object");
      if (line.piece !== undefined) need(isTable(line.piece) && Object.values(line.piece).every((p) => typeof p === "string"), "texts of tokens");
      else if (line.answers !== undefined) {
        const each = (a) => isTable(a) && typeof a.text === "string" && Number.isFinite(a.completion_tokens);
        need(isTable(line.answers) && Object.values(line.answers).every(each), "answers with a text and a count of tokens");
      } else if (line.event === "Accepted") this.accepted(line);
      else if (line.event !== undefined && this.lengths.has(line.id)) this.event(line, this.lengths.get(line.id));
    }

    accepted({ id, canvas, prompt_len: start, fixed, blocks }) {
      need(typeof id === "string" && !this.lengths.has(id), "a request of its own id");
      need(Array.isArray(canvas) && canvas.length > 0 && canvas.every(Number.isInteger), "a canvas of tokens");
      need(canvas.length <= MOST, `a canvas of at most ${MOST} positions`);
      need(isWhole(start, 0, canvas.length), "a prompt within the canvas");
      need(Array.isArray(fixed) && fixed.length === canvas.length, "one mark per position");
      need(Array.isArray(blocks) && blocks.every((b) => Array.isArray(b) && isSpan(b, canvas.length)), "blocks within the canvas");
      this.lengths.set(id, canvas.length);
      for (const token of canvas) if (token >= 0) this.used.add(token);
    }

    event(line, length) {
      if (line.event === "Stepped") this.stepped(line, length);
      else if (line.event === "Opened" || line.event === "BlockDone") need(isSpan([line.start, line.stop], length), "a block within the canvas");
      else if (line.event === "Finished") need(isWhole(line.end, 0, length) && isWhole(line.nfe, 0, Infinity), "an end within the canvas");
      else if (line.event === "Failed") need(typeof line.error === "string", "the words of an error");
    }

    stepped({ writes, work, nfe }, length) {
      const counts = isTable(work) && [work.row_layers, work.head_rows, work.seconds].every(Number.isFinite);
      need(counts && isWhole(nfe, 0, Infinity), "a step with its counts");
      const fits = (w) => Array.isArray(w) && isWhole(w[0], 0, length - 1) && Number.isInteger(w[1]) && (w[2] === null || typeof w[2] === "number");
      need(Array.isArray(writes) && writes.every(fits), "writes within the canvas");
      for (const [, token, , kind] of writes) if (kind !== 3 && token >= 0) this.used.add(token);
    }

    /* Throws if a token has no text. */
    pieces(known) {
      for (const token of this.used) need(known[token] !== undefined, `a text for token ${token}`);
    }
  }

  demo.Sound = Sound;
})(Unmask.demo);
