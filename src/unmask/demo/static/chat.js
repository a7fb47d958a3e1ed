/* Chat: a conversation whose newest answer is on the stage while it is written. */
"use strict";

(function (demo) {
  const el = demo.el;
  const { byId } = demo;

  class Chat {
    constructor(model, form) {
      this.model = model;
      this.form = form;
      this.run = null;
      this.stage = new demo.Stage(byId("chat-stage"), { title: "Canvas", onWord: (p, w) => this.fix(p, w), canKeep: model.can_keep });
      this.constraints = new demo.Constraints(byId("chat-constraints"), () => this.preview(), model.kind === "canvas" || model.kind === "recurrent");
      this.history = new demo.History(byId("talk"), {
        resend: (i) => this.resend(i),
        regenerate: () => this.regenerate(),
        show: (m) => this.show(m),
        changed: () => this.previewSoon(),
      });
      this.message = byId("message");
      this.previewSoon = demo.later(() => this.preview(true), 350);
      this.asked = 0;
      this.listen();
      this.examples();
      this.preview();
    }

    listen() {
      byId("send").addEventListener("click", (event) => {
        if (event.detail === 0) this.message.focus(); // pressed by key: the button is about to be switched off
        this.send();
      });
      byId("chat-stop").addEventListener("click", () => this.stop());
      byId("chat-clear").addEventListener("click", () => this.clear());
      byId("system").addEventListener("input", () => this.previewSoon());
      this.message.addEventListener("input", () => this.previewSoon());
      this.message.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        this.send();
      });
    }

    examples() {
      const place = byId("talk");
      const list = el("div", { class: "examples" }, el("p", { class: "quiet", text: "Try one of these, or write your own:" }),
        ...(this.model.examples || []).map((text) => el("button", { type: "button", class: "example", text, on: { click: () => {
          this.message.value = text;
          this.message.focus();
          this.previewSoon();
        } } })));
      place.before(list);
      this.exampleList = list;
    }

    // ---- what is sent ----------------------------------------------------------------------------------------------

    get raw() {
      return demo.form() === "raw";
    }

    /* The conversation up to the question that is answered next, as messages; a draft is the newest one. */
    upcoming() {
      const draft = this.message.value.trim() ? [{ role: "user", content: this.message.value }] : [];
      let length = this.history.messages.length;
      if (!draft.length) while (length && this.history.messages[length - 1].role === "assistant") length -= 1;
      const talk = [...this.history.sent(length), ...draft];
      return talk.length ? talk : [{ role: "user", content: (this.model.examples || ["Hello"])[0] }];
    }

    body(messages) {
      const system = byId("system").value.trim();
      const head = system ? [{ role: "system", content: system }] : [];
      const words = this.raw ? { prompt: messages[messages.length - 1].content } : { messages: [...head, ...messages] };
      return { ...words, constraints: this.constraints.value, ...this.form.values(), client: demo.api.client };
    }

    // ---- the run ---------------------------------------------------------------------------------------------------

    send() {
      if (this.run || !this.constraints.take()) return;
      this.history.keepEdit();
      const text = this.message.value;
      if (!text.trim()) {
        const last = this.history.last;
        if (last && last.role === "user") this.start(this.history.messages.length);
        return;
      }
      if (!this.ready([...this.history.sent(), { role: "user", content: text }])) return;
      this.message.value = "";
      this.history.add({ role: "user", content: text });
      this.start(this.history.messages.length);
    }

    /* Whether a request can be made of this form; what cannot be read is said at the form. */
    ready(messages) {
      try {
        this.body(messages);
        return true;
      } catch (error) {
        demo.refused(this.form, error);
        return false;
      }
    }

    resend(index) {
      if (this.run) return;
      this.history.keepEdit();
      this.start(index + 1);
    }

    /* The last question once more, with the next seed: the same one would give the same answer. */
    regenerate() {
      if (this.run) return;
      this.history.keepEdit();
      let length = this.history.messages.length;
      while (length && this.history.messages[length - 1].role === "assistant") length -= 1;
      if (!length || !this.ready(this.history.sent(length))) return;
      this.form.set("seed", this.form.values().seed + 1);
      this.start(length);
    }

    /* Answers the first `length` messages; later ones are taken away. */
    start(length) {
      if (!this.constraints.take()) return;
      this.asked += 1; // a preview that is still on its way is too late
      let body;
      try {
        body = this.body(this.history.sent(length));
      } catch (error) {
        return demo.refused(this.form, error);
      }
      this.form.showError(null);
      this.history.cut(length);
      const question = this.history.last.content;
      const answer = this.history.add({ role: "assistant", content: "", pending: true });
      this.history.lock(true);
      const title = demo.clip(question, 90);
      const run = new demo.Run(body, {
        state: (name, detail) => this.run === run && this.entered(name, detail),
        shown: () => this.stage.shown(run),
        done: (error) => this.run === run && this.done(run, answer, error),
      });
      answer.run = this.run = run;
      this.stage.follow(run, title);
      if (demo.narrow.matches) byId("chat-stage").scrollIntoView({ block: "start" });
      this.drawExamples();
      run.begin();
      return undefined;
    }

    entered(name, detail) {
      this.stage.say(name, detail);
      const working = !["finished", "stopped", "failed"].includes(name);
      this.busy(working, working && !["stopping", "showing"].includes(name));
      if (name === "waiting") demo.announce(`Waiting, number ${detail} in the queue`);
      if (name === "stopped") demo.announce("Stopped");
    }

    busy(working, stoppable) {
      if (!working && document.activeElement === byId("chat-stop")) this.message.focus();
      byId("chat-stop").disabled = !stoppable;
      byId("send").disabled = working;
    }

    done(run, answer, error) {
      this.run = null;
      answer.pending = false;
      answer.content = run.text;
      answer.note = noteOf(run);
      if (error || run.id === undefined) this.history.messages.splice(this.history.messages.indexOf(answer), 1);
      this.history.lock(false);
      this.stage.finished(run);
      if (error) demo.refused(this.form, error);
      else this.form.showError(null);
      byId("talk").scrollTop = byId("talk").scrollHeight;
    }

    stop() {
      if (this.run) this.run.stop();
    }

    clear() {
      this.stop();
      this.history.cut(0);
      this.constraints.clear();
      this.form.showError(null);
      this.run = null; // what still comes of it is not shown
      this.busy(false, false);
      this.history.lock(false);
      this.drawExamples();
      this.preview();
      this.message.focus();
    }

    drawExamples() {
      this.exampleList.hidden = this.history.messages.length > 0;
    }

    // ---- the canvas ------------------------------------------------------------------------------------------------

    show(message) {
      if (this.run) return;
      this.asked += 1;
      this.stage.open(message.run.recording, { title: demo.clip(message.content || "Canvas", 90), run: message.run,
        at: message.run.whole ? `/api/runs/${encodeURIComponent(message.run.job)}` : null });
    }

    fix(position, word) {
      this.constraints.add([[position, word]]);
      demo.announce(`${word} is fixed at place ${position}`);
    }

    /* Shows the canvas of the next answer; `quietly`: only if no run is on the stage. */
    async preview(quietly = false) {
      if (this.run || (quietly && this.stage.run)) return;
      this.asked += 1;
      const mine = this.asked;
      try {
        const { lines } = await demo.api.post("/api/prepare", this.body(this.upcoming()));
        if (mine !== this.asked || this.run) return;
        if (quietly && this.stage.typing) return void this.previewSoon(); // not under the reader's hands
        this.stage.preview(lines, "The next answer", "Every box is one token still to come. Click a box, or press Enter on it, to fix a word there; the first box is place 0.");
        this.form.showError(null);
      } catch (error) {
        if (mine === this.asked && !this.run) demo.refused(this.form, error);
      }
    }
  }

  function noteOf(run) {
    if (run.id === undefined) return "";
    const shown = run.recording.run(run.id);
    const { nfe, tokens, seconds } = shown.stats(shown.steps);
    const ended = run.state === "stopped" ? "stopped; " : "";
    return `${ended}${count(tokens, "token")} in ${count(nfe, "forward")}, ${seconds.toFixed(2)} s`;
  }

  const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;

  demo.Chat = Chat;
})(Unmask.demo);
