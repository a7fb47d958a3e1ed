/* Small helpers for building the page. Text enters the page as text only: there is no way here to parse markup. */
"use strict";

(function (demo) {
  /* An element: el("button", {class: "main", text: "Send", on: {click: f}}, child, ...). Other keys are attributes;
     null and false leave one out. */
  demo.el = function (tag, given = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(given)) {
      if (value === null || value === undefined || value === false) continue;
      if (key === "text") node.textContent = value;
      else if (key === "class") node.className = value;
      else if (key === "value") node.value = value;
      else if (key === "on") for (const [event, f] of Object.entries(value)) node.addEventListener(event, f);
      else node.setAttribute(key, value === true ? "" : String(value));
    }
    node.append(...children.filter((c) => c !== null && c !== undefined));
    return node;
  };

  demo.narrow = window.matchMedia("(max-width: 819px)"); // stage and panel stand one above the other

  demo.byId = (id) => document.getElementById(id);

  demo.empty = function (node) {
    node.replaceChildren();
    return node;
  };

  /* Says something to screen readers, once. */
  demo.announce = function (text) {
    const region = demo.byId("announce");
    region.textContent = "";
    window.setTimeout(() => {
      region.textContent = text;
    }, 30);
  };

  /* A refusal as a reader sees it: what is wrong, what was expected, what came, what to do. */
  demo.explain = function (error) {
    const parts = [demo.el("strong", { text: error.what || error.message || "Something went wrong" })];
    if (error.expected) parts.push(line("expected", error.expected));
    if (error.got) parts.push(line("got", error.got));
    if (error.remedy) parts.push(demo.el("span", { class: "remedy", text: error.remedy }));
    return parts;
  };

  function line(name, text) {
    return demo.el("span", { class: "because" }, demo.el("b", { text: `${name} ` }), text);
  }

  /* Shows or hides a problem in its own place. */
  demo.problem = function (place, error) {
    demo.empty(place);
    place.hidden = !error;
    if (error) place.append(...demo.explain(error));
  };

  /* Calls f when `wait` milliseconds have passed without another call. */
  demo.later = function (f, wait) {
    let timer = 0;
    return (...args) => {
      window.clearTimeout(timer);
      timer = window.setTimeout(() => f(...args), wait);
    };
  };

  demo.saveAs = function (name, text, type) {
    const url = URL.createObjectURL(new Blob([text], { type }));
    const link = demo.el("a", { href: url, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    window.setTimeout(() => URL.revokeObjectURL(url), 10000);
  };

  demo.clip = (text, n) => (text.length > n ? `${text.slice(0, n - 1).trimEnd()}…` : text);
})(Unmask.demo);
