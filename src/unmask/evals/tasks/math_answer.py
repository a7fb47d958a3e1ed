r"""The final answer of a solution in LaTeX, and whether two of them mean the same.

Enters: solution texts. Leaves: the content of the last \boxed{} or of the sentence "The final answer is ...", and two
comparisons with names of their own: `math_verify` (the package of that name, mathematical equivalence) and
`string_match` (equality of normalised strings: weaker, and always there).
"""

from __future__ import annotations

import importlib.util
import re
import threading
from functools import cache

_FINAL = re.compile(r"Final Answer: The final answer is(.*?)\.? I hope it is correct", re.DOTALL)
_SIZES = re.compile(r"\\(?:left|right|bigg?|Bigg?|displaystyle|,|!|;|:)(?![a-zA-Z])|(?<!\\)\\ ")
_WORDS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_UNIT = re.compile(r"(?<=[\d}])\s*\\(?:text|mathrm|mbox)\s*\{[^{}]*\}(?:\s*\^\s*\{?\d\}?)?$")
_SHORT_FRACTION = re.compile(r"\\frac\s*(?:\{([^{}])\}|([^{}\s\\]))\s*(?:\{([^{}])\}|([^{}\s\\]))")
_SHORT_ROOT = re.compile(r"\\sqrt\s*([^{}\s\\\[])")
_GROUPED = re.compile(r"^-?\d{1,3}(?:,\d{3})+(?:\.\d+)?$")


@cache
def has_math_verify() -> bool:
    return importlib.util.find_spec("math_verify") is not None


def boxed(text: str) -> str | None:
    r"""The content of the last complete \boxed{...} (or \fbox{...}), braces matched."""
    for start in reversed([m.end() for m in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]):
        depth = 1
        for at in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                return text[start:at]
    return None


def final_answer(text: str) -> str | None:
    r"""What a solution claims: its first "Final Answer: ..." sentence, else its last \boxed{}."""
    found = _FINAL.search(text)
    if found:
        return found[1].strip()
    inside = boxed(text)
    return None if inside is None else inside.strip()


def normal(answer: str) -> str:
    """An answer without what changes nothing: dollar signs, sizes, spaces, units, grouping commas, short fractions."""
    text = answer.strip().strip("$").strip().rstrip(".")
    text = text.replace(r"\$", "").replace(r"\%", "").replace("%", "").replace(r"\dfrac", r"\frac")
    text = text.replace(r"\tfrac", r"\frac").replace("^\\circ", "").replace("^{\\circ}", "").replace("{,}", ",")
    text = re.sub(r"\\[,!;: ]", "", text)
    text = _WORDS.sub(r"\1", _SIZES.sub("", _UNIT.sub("", text)))
    text = re.sub(r"\s+", "", text)
    text = re.sub(r"^[a-zA-Z]\w?=(?=.)", "", text)
    text = _SHORT_FRACTION.sub(lambda m: rf"\frac{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}", text)
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    if _GROUPED.match(text):
        text = text.replace(",", "")
    return re.sub(r"^(-?)\.(?=\d)", r"\g<1>0.", text)


def string_match(answer: str | None, gold: str) -> bool:
    return answer is not None and normal(answer) == normal(gold)


def verified(text: str, gold: str) -> bool:
    """math_verify's verdict on whole texts, as lm-eval's minerva_math asks for it; its alarm works in the main thread
    only, elsewhere there is no limit on its time."""
    from math_verify import parse, verify

    limit = 5 if threading.current_thread() is threading.main_thread() else None
    target = parse(text, parsing_timeout=limit)
    return bool(verify(parse(gold, parsing_timeout=limit), target, timeout_seconds=limit))
