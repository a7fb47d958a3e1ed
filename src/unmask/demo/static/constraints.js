/* Words at fixed places of the answer: a text field "3:apple, 7:pear", and one removable chip per word.
   Enters: what is typed, or a word put into a cell. Leaves: {"3": "apple"} for a request. */
"use strict";

(function (demo) {
  const el = demo.el;
  const FORM = "position:word parts separated by commas, such as 3:apple, 7:pear";

  /* [[position, word], ...] of a text; a comma inside a word is written \, . Throws what it cannot read. */
  function parse(text) {
    if (!text.trim()) return [];
    return text.split(/(?<!\\),/).map((part) => {
      const found = /^\s*([0-9]+)\s*:(.*)$/s.exec(part);
      const word = found ? found[2].replaceAll("\\,", ",").trim() : "";
      if (!found || !word) throw new demo.ApiError({ what: `fixed word "${part.trim()}"`, expected: FORM, got: found ? "no word" : "something else" }, 0);
      return [Number(found[1]), word];
    });
  }

  class Constraints {
    /* sees: whether all of an answer is seen at once; on a model that reads from the left a fixed word comes late. */
    constructor(place, onchange, sees) {
      this.words = new Map();
      this.onchange = onchange;
      this.input = el("input", { id: "constraints", type: "text", autocomplete: "off", spellcheck: "false", placeholder: "3:apple, 7:pear", "aria-describedby": "constraints-wrong" });
      this.wrong = el("p", { class: "problem small", id: "constraints-wrong", role: "alert", hidden: true });
      this.chips = el("ul", { class: "chips", "aria-label": "Words at fixed places" });
      const field = el("div", { class: "field-row" }, el("label", { for: "constraints", text: "Fixed words" }), this.input);
      this.note = el("p", { class: "quiet", hidden: true, text: "This model writes from the left: what stands before a fixed word does not know of it." });
      this.late = !sees;
      place.append(field, this.wrong, this.chips, this.note);
      this.input.addEventListener("keydown", (event) => {
        if (event.key !== "Enter") return;
        event.preventDefault();
        this.take();
      });
      this.input.addEventListener("change", () => this.take());
      this.draw();
    }

    /* Turns what is typed into chips; false if it cannot be read. */
    take() {
      let parts;
      try {
        parts = parse(this.input.value);
      } catch (error) {
        this.input.setAttribute("aria-invalid", "true");
        demo.problem(this.wrong, error);
        return false;
      }
      this.input.removeAttribute("aria-invalid");
      demo.problem(this.wrong, null);
      this.input.value = "";
      if (parts.length) this.add(parts);
      return true;
    }

    add(parts) {
      for (const [position, word] of parts) this.words.set(position, word);
      this.changed();
    }

    remove(position) {
      this.words.delete(position);
      this.changed();
      this.input.focus();
    }

    clear() {
      this.words.clear();
      this.input.value = "";
      demo.problem(this.wrong, null);
      this.draw();
    }

    changed() {
      this.draw();
      this.onchange();
    }

    draw() {
      this.note.hidden = !this.late || this.words.size === 0;
      const sorted = [...this.words].sort((a, b) => a[0] - b[0]);
      demo.empty(this.chips).append(
        ...sorted.map(([position, word]) =>
          el("li", { class: "chip" }, el("span", { class: "chip-place", text: String(position) }), el("span", { text: word }),
            el("button", { type: "button", text: "×", "aria-label": `Remove ${word} at place ${position}`, on: { click: () => this.remove(position) } })),
        ),
      );
    }

    /* The field of a request; null when no word is fixed. */
    get value() {
      return this.words.size ? Object.fromEntries([...this.words].map(([p, w]) => [String(p), w])) : null;
    }
  }

  demo.Constraints = Constraints;
})(Unmask.demo);
