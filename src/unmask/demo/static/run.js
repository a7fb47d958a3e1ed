/* One run, from the request to the last line. Enters: the body of a request. Leaves: the lines as they came (what is
   saved), and a Recording that grows as the steps are *shown*: the playback delay holds lines back here, on this page
   only, and changes nothing of the run. */
"use strict";

(function (demo) {
  const live = new Set();

  /* The next frame, or soon: a page in the background gets no frames. */
  function nextFrame(f) {
    let done = false;
    const once = () => {
      if (done) return;
      done = true;
      f(performance.now());
    };
    window.requestAnimationFrame(once);
    window.setTimeout(once, 250);
  }

  class Run {
    /* handlers: state(name, detail), shown(), done(error or null) */
    constructor(body, handlers) {
      this.body = body;
      this.handlers = handlers;
      this.lines = [];
      this.recording = new Unmask.Recording();
      this.job = null;
      this.state = "sending";
      this.finished = null;
      this.dropped = false;
      this.pending = [];
      this.over = false; // nothing more comes
      this.whole = false; // the last line was the recording's end
      this.error = null;
      this.hurry = false;
      this.credit = 1;
      this.last = 0;
      this.abort = new AbortController();
    }

    get id() {
      return this.recording.ids()[0];
    }

    get text() {
      const answer = (this.recording.answers || {})[this.id];
      return answer ? answer.text : "";
    }

    get jsonl() {
      return this.lines.map((line) => `${line}\n`).join("");
    }

    async begin() {
      live.add(this);
      this.enter("sending");
      nextFrame((now) => this.pump(now));
      try {
        await demo.api.stream("/api/generate", this.body, this.abort.signal, (text) => this.take(text));
        if (!this.error && !this.whole && !this.dropped) throw new demo.ApiError({ what: "The run was cut off", remedy: "Try again." }, 0);
      } catch (error) {
        this.error = this.error || error;
      }
      this.over = true;
    }

    take(text) {
      const line = Unmask.parse(text);
      if ("job" in line) this.job = line.job;
      else if ("stopped" in line) this.dropped = true; // taken out of the queue
      else if ("waiting" in line) this.enter("waiting", line.waiting);
      else if ("error" in line && !("event" in line)) this.error = new demo.ApiError(line.error, 0);
      else {
        if (this.lines.length === 0) this.enter("running");
        this.lines.push(text);
        this.pending.push(line);
        this.whole = "end" in line;
        if (line.event === "Finished") this.finished = line;
        if (line.event === "Failed") this.error = new demo.ApiError({ what: "The run failed", got: line.error }, 0);
      }
    }

    enter(state, detail) {
      this.state = state;
      this.handlers.state(state, detail);
    }

    /* Shows what is due, once per frame: with a delay of d milliseconds one step per d, else all that came. */
    pump(now) {
      const delay = this.hurry || document.hidden ? 0 : demo.prefs.get("delay");
      if (this.last && delay > 0) this.credit = Math.min(this.credit + (now - this.last) / delay, Math.max(1, 50 / delay));
      this.last = now;
      let changed = false;
      while (this.pending.length && (delay === 0 || this.credit >= 1 || this.pending[0].event !== "Stepped")) {
        if (this.pending[0].event === "Finished" && !this.whole && !this.over) break; // its text is still on the way
        const line = this.pending.shift();
        if (line.event === "Stepped" && delay > 0) this.credit -= 1;
        this.recording.push(line);
        changed = true;
      }
      if (changed) this.handlers.shown();
      if (this.over && this.pending.length === 0) return this.close();
      if (this.over && this.state === "running") this.enter("showing");
      return nextFrame((t) => this.pump(t));
    }

    close() {
      live.delete(this);
      const stopped = this.error ? this.error.name === "AbortError" : this.dropped || (this.finished || {}).reason === "cancelled";
      if (stopped && this.error) this.error = null;
      this.enter(this.error ? "failed" : stopped ? "stopped" : "finished");
      this.handlers.done(this.error);
    }

    /* Ends the work on the server; what was settled by then stays. */
    async stop() {
      this.hurry = true;
      if (this.over) return;
      if (this.job === null) return void this.abort.abort();
      this.enter("stopping");
      try {
        await demo.api.post("/api/stop", { job: this.job });
      } catch (error) {
        this.abort.abort();
      }
    }
  }

  window.addEventListener("pagehide", () => {
    for (const run of live) run.abort.abort();
  });

  demo.Run = Run;
})(Unmask.demo);
