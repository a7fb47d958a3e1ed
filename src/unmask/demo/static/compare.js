/* Which words of two texts differ: the longest common subsequence of their words, white space aside. */
"use strict";

(function (demo) {
  const MOST = 2000; // words; beyond that a table of all pairs would be too large

  const words = (text) => text.match(/\s+|[^\s]+/g) || [];
  const isWord = (part) => /\S/.test(part);

  /* For every word of `a` whether it is in the longest common subsequence with `b`. */
  function common(a, b) {
    const table = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i -= 1) {
      for (let j = b.length - 1; j >= 0; j -= 1) {
        table[i][j] = a[i] === b[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
      }
    }
    const shared = new Array(a.length).fill(false);
    for (let i = 0, j = 0; i < a.length && j < b.length; ) {
      if (a[i] === b[j]) {
        shared[i] = true;
        i += 1;
        j += 1;
      } else if (table[i + 1][j] >= table[i][j + 1]) i += 1;
      else j += 1;
    }
    return shared;
  }

  /* One text as parts {text, differs}, against the others: a word differs if any of them does not share it. */
  demo.compare = function (text, others) {
    const parts = words(text).slice(0, 2 * MOST);
    const own = parts.filter(isWord);
    const shared = others.map((other) => common(own, words(other).filter(isWord).slice(0, MOST)));
    let at = -1;
    return parts.map((part) => {
      if (!isWord(part)) return { text: part, differs: false };
      at += 1;
      return { text: part, differs: shared.some((s) => !s[at]) };
    });
  };
})(Unmask.demo);
