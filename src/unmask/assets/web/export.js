// The exported page: reads the recording inside it and starts the player.
(function () {
  "use strict";

  const Unmask = globalThis.Unmask;
  const recording = new Unmask.Recording();
  for (const line of document.getElementById("recording").textContent.split("\n")) {
    if (line) recording.push(Unmask.parse(line));
  }
  const element = document.getElementById("player");
  const section = document.getElementById("answer");
  const text = section.querySelector("p");
  let shown = null;
  element.addEventListener("unmask-step", ({ detail }) => {
    if (detail.id === shown) return;
    shown = detail.id;
    const answer = recording.answers[shown];
    text.textContent = answer ? answer.text : recording.text(shown, Infinity);
    section.hidden = false;
  });
  Unmask.player = new Unmask.Player(element, recording);
})();
