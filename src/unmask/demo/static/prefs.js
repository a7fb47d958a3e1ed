/* What a reader of this page prefers: theme, palette, playback delay. Runs before the page is drawn, so that the theme
   is right at once. Enters: what this browser remembers. Leaves: Unmask.demo.prefs. Nothing here is ever sent. */
"use strict";
var Unmask = window.Unmask || {};
window.Unmask = Unmask;
Unmask.demo = Unmask.demo || {};

(function (demo) {
  const KEY = "unmask-demo";
  const values = { theme: "auto", palette: "published", delay: 30 };

  function read() {
    try {
      return JSON.parse(window.localStorage.getItem(KEY)) || {};
    } catch (error) {
      return {}; // a browser that keeps nothing, or something else under our name
    }
  }

  function keep() {
    try {
      window.localStorage.setItem(KEY, JSON.stringify(values));
    } catch (error) {
      return; // the choice then lasts as long as the page
    }
  }

  function checked(name, value) {
    if (name === "theme") return ["auto", "light", "dark"].includes(value);
    if (name === "palette") return ["published", "safe"].includes(value);
    return name === "delay" && Number.isFinite(value) && value >= 0 && value <= 2000;
  }

  function dress() {
    const root = document.documentElement;
    if (values.theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = values.theme;
  }

  const stored = read();
  for (const name of Object.keys(values)) if (checked(name, stored[name])) values[name] = stored[name];
  dress();

  demo.prefs = {
    get: (name) => values[name],
    /* Changes one preference; every listener of "unmask-prefs" hears of it. False: not a value of that name. */
    set(name, value) {
      if (!checked(name, value)) return false;
      values[name] = value;
      keep();
      dress();
      document.dispatchEvent(new CustomEvent("unmask-prefs", { detail: { name, value } }));
      return true;
    },
  };
})(Unmask.demo);
