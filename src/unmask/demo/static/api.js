/* The server, seen from the page: JSON in and out, and server-sent events over fetch (EventSource cannot POST).
   A refusal of the server becomes an ApiError with its what / expected / got / remedy. */
"use strict";

(function (demo) {
  class ApiError extends Error {
    constructor(fields, status) {
      super(fields.message || fields.what || `the server answered ${status}`);
      this.name = "ApiError";
      this.status = status;
      for (const key of ["what", "expected", "got", "remedy"]) this[key] = fields[key] || "";
    }
  }

  const LOST = { what: "No connection to the server", remedy: "Check that `unmask demo` is still running, then try again." };
  const TIED = "application/json";

  function client() {
    const bytes = crypto.getRandomValues(new Uint8Array(12));
    return Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
  }

  async function call(path, options) {
    let answer;
    try {
      answer = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(LOST, 0);
    }
    if (!answer.ok) throw await refusal(answer);
    return answer;
  }

  async function refusal(answer) {
    try {
      const body = await answer.json();
      if (body && body.error) return new ApiError(body.error, answer.status);
    } catch (error) {
      return new ApiError({ what: `The server answered ${answer.status}` }, answer.status);
    }
    return new ApiError({ what: `The server answered ${answer.status}` }, answer.status);
  }

  function posted(body, signal) {
    return { method: "POST", headers: { "Content-Type": TIED }, body: JSON.stringify(body), signal };
  }

  /* The data of a stream's events, one by one. */
  async function* events(answer) {
    const reader = answer.body.getReader();
    const decoder = new TextDecoder();
    let rest = "";
    try {
      for (;;) {
        const { done, value } = await reader.read();
        rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
        const blocks = rest.split(/\r?\n\r?\n/);
        rest = blocks.pop();
        for (const block of blocks) {
          const data = dataOf(block);
          if (data) yield data;
        }
        if (done) return;
      }
    } finally {
      reader.cancel().catch(() => undefined);
    }
  }

  function dataOf(block) {
    return block
      .split(/\r?\n/)
      .filter((line) => line.startsWith("data:"))
      .map((line) => line.slice(line[5] === " " ? 6 : 5))
      .join("\n");
  }

  demo.ApiError = ApiError;
  demo.api = {
    client: client(),
    get: async (path) => (await call(path, {})).json(),
    text: async (path) => (await call(path, {})).text(),
    post: async (path, body, signal) => (await call(path, posted(body, signal))).json(),
    /* Calls onLine with the text of every event of the answer's stream; ends with it. */
    async stream(path, body, signal, onLine) {
      const answer = await call(path, posted(body, signal));
      try {
        for await (const line of events(answer)) onLine(line);
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ApiError(LOST, 0);
      }
    },
  };
})(Unmask.demo);
