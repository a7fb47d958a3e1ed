"""Refusals in the words of a page. The checks are those of the command line and speak of its options; a visitor of a
page sees labelled fields.

Enters: an `InputError` and the labels of the fields, by setting. Leaves: the same error, said for the page.
"""

from __future__ import annotations

import re

from unmask.core.errors import InputError

LONGEST = 240
"""Signs of one part of a refusal; what came may be as long as a visitor likes."""
UNUSED = "options without effect: "
SPOKEN = (
    (r'Use --schedule "blocks\((\d+)\)", or leave it out\.', r"Leave {block_length} empty, or use \1."),
    (r"^schedule blocks$", "{block_length}"),
    (r"add --temperature", "Set {temperature} above 0, such as 0.7."),
    (r"Use --profile fast-dllm-v2; for new work schedule blocks, (.*)", r"Use \1"),
    (r"Leave (it|the profile) out, or use --profile fast-dllm-v2.*", "Leave {block_length} empty."),
    (r"Leave --cfg-scale out\.", "Leave {cfg_scale} empty."),
    (r"[Ss]ee `unmask ls \w+`\.?", "Leave the field empty for the recommended one."),
    (r"Convert the input to UTF-8\.", "Type it again: a part of a character is missing."),
    (
        r"Shorten the prompt or ask for fewer tokens\.",
        "Shorten the text, delete older messages, or set a smaller {max_tokens}.",
    ),
)
"""What the command line says, and what a page says instead; {setting} is the label of its field."""


def in_page_words(error: InputError, labels: dict[str, str]) -> InputError:
    """This refusal for somebody who sees fields with these labels instead of options."""
    if error.what.startswith(UNUSED):
        return _unused(error, labels)
    told = {part: _said(getattr(error, part), labels) for part in ("expected", "got", "remedy")}
    return type(error)(_said(error.what, labels), **told)


def _unused(error: InputError, labels: dict[str, str]) -> InputError:
    """A setting that the rest of the form leaves without effect."""
    names = [_label(flag.strip(), labels) for flag in error.what.removeprefix(UNUSED).split(",")]
    return type(error)(
        f"{', '.join(names)}: without effect here",
        expected="settings that work together",
        got=_clipped(error.got),
        remedy=f"Leave {' and '.join(names)} empty, or choose another {labels.get('policy', 'policy')}.",
    )


def _said(text: str, labels: dict[str, str]) -> str:
    for pattern, instead in SPOKEN:
        text = re.sub(pattern, re.sub(r"\{(\w+)\}", lambda m: _label(m[1], labels), instead), text)
    text = re.sub(r"--[a-z][a-z-]+", lambda m: _label(m[0], labels), text)
    if "-" in text:  # an option's name, alone; a setting's own name stays, for those who use the interface itself
        text = labels.get(text.replace("-", "_"), text)
    return _clipped(text)


def _label(flag: str, labels: dict[str, str]) -> str:
    """The label of "--block-length" or "block_length"; without such a field, its name in plain words."""
    name = flag.removeprefix("--").replace("-", "_")
    return labels.get(name, name.replace("_", " "))


def _clipped(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
