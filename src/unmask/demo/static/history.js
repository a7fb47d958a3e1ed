/* The messages of a conversation, on the page and as they are sent. Every message can be edited or deleted; a question
   can be sent again from where it stands, the last answer can be written anew. What stands here is what is sent. */
"use strict";

(function (demo) {
  const el = demo.el;
  const NAMES = { user: "You", assistant: "Model" };

  class History {
    /* does: {resend(index), regenerate(), show(message), changed()} */
    constructor(place, does) {
      this.place = place;
      this.does = does;
      this.messages = []; // {role, content, run, note}
      this.locked = false;
      this.editing = null;
      this.draw();
    }

    get last() {
      return this.messages[this.messages.length - 1];
    }

    add(message) {
      this.messages.push(message);
      this.draw();
      this.place.scrollTop = this.place.scrollHeight;
      return message;
    }

    cut(length) {
      this.messages.length = length;
      this.draw();
    }

    lock(locked) {
      this.locked = locked;
      this.editing = null;
      this.draw();
    }

    /* What the model is given: no message without text, the newest question last. */
    sent(length = this.messages.length) {
      return this.messages.slice(0, length).filter((m) => m.content.trim()).map(({ role, content }) => ({ role, content }));
    }

    draw() {
      demo.empty(this.place).append(...this.messages.map((m, i) => this.item(m, i)));
      this.place.classList.toggle("is-empty", this.messages.length === 0);
    }

    item(message, index) {
      const body = this.editing === index ? this.editor(message, index) : this.words(message, index);
      return el("li", { class: `turn ${message.role}` }, el("h3", { text: NAMES[message.role] }), ...body);
    }

    words(message, index) {
      const text = el("p", { class: "prose", text: message.content || (message.pending ? "writing" : "(no text)") });
      text.classList.toggle("quiet", !message.content);
      if (message.pending) text.setAttribute("aria-busy", "true");
      const note = message.note ? el("p", { class: "turn-note", text: message.note }) : null;
      return [text, note, message.pending ? null : this.actions(message, index)];
    }

    actions(message, index) {
      const row = el("div", { class: "turn-actions" });
      const name = `${NAMES[message.role].toLowerCase()} message ${index + 1}`;
      const add = (text, f, label) => row.append(el("button", { type: "button", class: "tiny", text, disabled: this.locked, "aria-label": `${label || text} ${name}`, on: { click: f } }));
      if (message.run && message.run.id !== undefined) add("Show canvas", () => this.does.show(message), "Show the canvas of");
      add("Edit", () => this.edit(index));
      add("Delete", () => this.remove(index));
      if (message.role === "user") add("Resend", () => this.does.resend(index));
      else if (index === this.messages.length - 1) add("Regenerate", () => this.does.regenerate());
      return row;
    }

    /* Whatever else is done next, what is typed into an open editor is not lost. */
    keepEdit() {
      if (this.editing === null) return;
      const [message, area] = [this.messages[this.editing], this.place.querySelector(".turn textarea")];
      this.editing = null;
      if (message && area && area.value !== message.content) this.change(message, area.value);
      this.draw();
    }

    edit(index) {
      this.keepEdit();
      this.editing = index;
      this.draw();
      const area = this.place.querySelector(".turn textarea");
      area.focus();
      area.setSelectionRange(area.value.length, area.value.length);
    }

    editor(message, index) {
      const id = `edit-${index}`;
      const area = el("textarea", { id, rows: Math.min(8, 2 + Math.floor(message.content.length / 40)), value: message.content });
      const close = () => {
        this.editing = null;
        this.draw();
        this.focus(index);
      };
      const save = () => {
        if (area.value !== message.content) this.change(message, area.value);
        close();
      };
      area.addEventListener("keydown", (event) => {
        if (event.key === "Escape") {
          event.stopPropagation();
          close();
        } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
      });
      const row = el("div", { class: "row" }, el("button", { type: "button", text: "Save", on: { click: save } }));
      if (message.role === "user") {
        row.append(el("button", { type: "button", text: "Save and resend", on: { click: () => {
          save();
          this.does.resend(index);
        } } }));
      }
      row.append(el("button", { type: "button", class: "plain", text: "Cancel", on: { click: close } }));
      return [el("label", { class: "unseen", for: id, text: `Edit message ${index + 1}` }), area, row];
    }

    change(message, text) {
      message.content = text;
      if (message.role === "assistant") {
        message.run = null; // the canvas no longer says what stands here
        message.note = "edited by you";
      }
      this.does.changed();
    }

    remove(index) {
      this.keepEdit();
      this.messages.splice(index, 1);
      this.draw();
      this.does.changed();
      this.focus(Math.min(index, this.messages.length - 1));
    }

    focus(index) {
      const item = this.place.children[index];
      const target = item ? item.querySelector("button:not(:disabled)") : demo.byId("message");
      if (target) target.focus();
    }
  }

  demo.History = History;
})(Unmask.demo);
