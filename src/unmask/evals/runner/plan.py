"""What is asked, in which order, with which seed: everything that decides the numbers of a run.

Enters: a `Setup`, a task's data, a model. Leaves: `Asked`s (an item, its prompt, a prepared request) in groups. A group
is what is decoded together and the unit of resuming: its composition depends on the setup alone, never on what was
done before or by whom, so a resumed run and a run of several processes make the same forwards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from math import ceil
from typing import Any

from unmask.core import catalog
from unmask.core.errors import ConfigError, InputError, RequestError
from unmask.engine.engine import sequence_of
from unmask.engine.options import DecodeOptions
from unmask.evals.likelihood import Scoring
from unmask.evals.task import Data, Item, Question, Task
from unmask.pipeline import Model
from unmask.pipeline.ask import SEED_LIMIT, Ask, Prompt
from unmask.pipeline.request import Prepared, messages_of, need_codec, prepare_one, prompt_ids

LENGTH = "gen_length"
TOO_LONG = "Use fewer worked examples, as in gsm8k(shots=2), or a shorter answer (--max-tokens)."


@dataclass(frozen=True)
class Setup:
    """A run as its user means it.

    Args:
        task: a spec of the catalog ("gsm8k(shots=5)"), or a task object.
        data: a local file or directory; None lets the task find its own. split: part of the data.
        chat: the chat template (True), raw text (False), or what the checkpoint has (None). system: a system message.
        bos: raw text begins with the tokenizer's first token.
        max_tokens: length of an answer; None takes the task's published one.
        options: how to decode.
        cut: end an answer at the task's stop strings (published programs differ here).
        seed: of the run; every answer has its own, made from it and the item's id.
        batch: answers decoded together.
        limit: the first so many items (int), or that share of them (float below 1).
        n_samples: answers per item. pass_at: numbers k for pass@k (kind "code").
        scoring: how likelihoods are made (kind "choice"); its seed is the run's.
        timeout, weak: seconds per program, and running it without full protection (kind "code"). workers: programs at
            a time; None takes one per core.
        audit: share of the items that are decoded once more, exactly.
        protocol: name of the published protocol this is, for the record.
    """

    task: str | Task
    data: str | None = None
    split: str = "test"
    chat: bool | None = None
    system: str | None = None
    bos: bool = False
    max_tokens: int | None = None
    options: DecodeOptions = field(default_factory=DecodeOptions)
    cut: bool = True
    seed: int = 0
    batch: int = 8
    limit: int | float | None = None
    n_samples: int = 1
    pass_at: tuple[int, ...] = ()
    scoring: Scoring = field(default_factory=Scoring)
    timeout: float = 3.0
    weak: bool = False
    workers: int | None = None
    audit: float | None = None
    protocol: str | None = None

    def __post_init__(self) -> None:
        for name, low in (("batch", 1), ("n_samples", 1), ("seed", 0), ("max_tokens", 1)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < low):
                raise ConfigError(name.replace("_", "-"), expected=f"an integer from {low}", got=repr(value))
        if self.seed >= SEED_LIMIT:
            raise ConfigError("seed", expected=f"below {SEED_LIMIT}", got=str(self.seed))
        whole = type(self.limit) is int and self.limit >= 1
        if self.limit is not None and not whole and not (isinstance(self.limit, float) and 0 < self.limit < 1):
            raise ConfigError("limit", expected="a number of items from 1, or a share below 1", got=repr(self.limit))
        if self.audit is not None and not 0 < self.audit <= 1:
            raise ConfigError("audit", expected="a share above 0 and at most 1, such as 5%", got=repr(self.audit))
        for k in self.pass_at:
            if not 1 <= k <= self.n_samples:
                raise ConfigError(
                    "pass@k", expected=f"k from 1 to the {self.n_samples} answers per item", got=str(k),
                    remedy="Ask for more answers per item with --n-samples.",
                )  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """One answer to be made. index: of the item in the data; sample: which of its answers."""

    index: int
    sample: int
    item: Item
    question: Question
    prompt: Prompt
    ids: tuple[int, ...]
    seed: int
    prepared: Prepared | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Its place among all answers."""
        return self.index, self.sample

    @property
    def prompt_sha256(self) -> str:
        """Hash of the prompt's ids: template, examples and tokenizer are in it."""
        return sha256(self.ids)


def sha256(value: Any) -> str:
    """Hash of a JSON value, written in one way."""
    return hashlib.sha256(json.dumps(value, separators=(",", ":"), sort_keys=True).encode()).hexdigest()


def item_seed(seed: int, item: str, sample: int) -> int:
    """The seed of one answer: a function of the run's seed, the item's id and the sample, and of nothing else."""
    digest = hashlib.sha256(f"{seed}\0{item}\0{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % SEED_LIMIT


def limited(count: int, limit: int | float | None) -> int:
    """How many of `count` items are asked."""
    if limit is None:
        return count
    return min(count, limit) if isinstance(limit, int) else min(count, max(1, ceil(count * limit)))


class Plan:
    """A setup on a model and its data: every answer to be made, checked before the first is begun.

    Raises:
        InputError: data that cannot be used, a prompt that does not fit, options that the model refuses.
    """

    def __init__(self, model: Model, setup: Setup) -> None:
        self.model, self.setup = model, setup
        self.task: Task = catalog.parse("task", setup.task)
        self.spec = setup.task if isinstance(setup.task, str) else repr(setup.task)
        if self.task.kind == "choice":
            _refuse_for_choice(setup)
        if setup.pass_at and self.task.kind != "code":
            raise ConfigError("pass@k", expected="a task whose answers are run as programs", got=self.spec)
        self.data: Data = self.task.load(setup.data, setup.split)
        self.items = self.data.items[: limited(len(self.data.items), setup.limit)]
        _check_ids(self.items)
        self.chat = False if self.task.kind == "choice" else model.has_chat if setup.chat is None else setup.chat
        self.max_tokens = self.task.max_tokens if setup.max_tokens is None else setup.max_tokens

    @property
    def is_limited(self) -> bool:
        """Whether items of the data are left out."""
        return len(self.items) < len(self.data.items)

    @cached_property
    def asked(self) -> list[Asked]:
        """All answers in order: item by item, sample by sample."""
        return [a for index, item in enumerate(self.items) for a in self._of_item(index, item)]

    @property
    def groups(self) -> list[list[Asked]]:
        """Answers that are decoded together."""
        size = self.setup.batch
        return [self.asked[i : i + size] for i in range(0, len(self.asked), size)]

    def _of_item(self, index: int, item: Item) -> list[Asked]:
        question = self.task.question(item, self.data.shots)
        prompt: Prompt = self._prompt(question)
        if self.task.kind == "choice":
            return [self._choice(index, item, question, str(prompt))]
        stops = question.until if self.setup.cut else ()
        template = self._template(question)
        length = self.max_tokens if template is None else None
        ask = Ask(self.chat, self.setup.system, length, stop=stops, template=template, options=self.setup.options)
        try:
            first = prepare_one(self.model, *self._begun(question, prompt, ask), "")
        except RequestError as error:
            raise _of_item(error, item.id) from None
        ids = tuple(first.request.canvas[: first.request.prompt_len].tolist())
        out = []
        for k in range(self.setup.n_samples):
            seed = item_seed(self.setup.seed, item.id, k)
            request = replace(first.request, id=f"{index}.{k}", seed=seed)
            prepared = replace(first, request=request, index=index, sample=k)
            out.append(Asked(index, k, item, question, prompt, ids, seed, prepared))
        return out

    def _prompt(self, question: Question) -> Prompt:
        if not self.chat:
            return (bos_text(self.model) if self.setup.bos else "") + question.text + question.begun
        return question.messages or ({"role": "user", "content": question.text},)

    def _begun(self, question: Question, prompt: Prompt, ask: Ask) -> tuple[Prompt, Ask]:
        """A conversation whose answer has begun goes in as ids: the turn is open, its ends still end the answer."""
        if not question.begun or not self.chat:
            return prompt, ask
        ids = need_codec(self.model).encode(self._rendered(question, prompt))
        ends = self.model.kind.turn_end if ask.options.profile == "default" else ()
        return ids, replace(ask, chat=None, system=None, stop=(*ask.stops, *ends))

    def _rendered(self, question: Question, prompt: Prompt) -> str:
        return need_codec(self.model).render_chat(messages_of(prompt, self.setup.system)) + question.begun

    def _template(self, question: Question) -> str | None:
        """The hole and the text after it (infilling), None where nothing stands after the answer."""
        if not question.suffix:
            return None
        if self.chat:
            raise ConfigError(self.spec, expected="a raw text to fill", got="a chat template", remedy="Add --raw.")
        holes = len(need_codec(self.model).encode(question.span))
        return f"[[{holes}]]" + question.suffix.replace("[[", r"\[[")

    def _choice(self, index: int, item: Item, question: Question, prompt: str) -> Asked:
        if len(question.choices) < 2:
            raise ConfigError(f"item {item.id}", expected="at least two choices", got=str(len(question.choices)))
        ids = tuple(prompt_ids(self.model, prompt, Ask(chat=False), False))
        return Asked(index, 0, item, question, prompt, ids, item_seed(self.setup.seed, item.id, 0))

    # ---- words for the record ----------------------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, str]:
        """What every answer is decoded with, and who decided it: what a protocol or the task says, no user gave."""
        first = self.asked[0].prepared
        if first is None:
            return {}
        by = "(given)" if self.setup.protocol is None else "(protocol)"
        table = {name: value.replace("(given)", by) for name, value in first.settings.table.items()}
        return table if self.setup.max_tokens is not None else {**table, LENGTH: f"{first.settings.gen_length} (task)"}

    @property
    def strategy(self) -> str:
        """The strategy of every answer, in the catalog's words."""
        first = self.asked[0].prepared
        return "" if first is None else str(first.settings.strategy)

    @property
    def forwards(self) -> tuple[int, int]:
        """Forwards of one answer at least and at most, if nothing ends it early."""
        first = self.asked[0].prepared
        if first is None:
            return 1, self.setup.scoring.draws
        policy: Any = first.settings.strategy.policy
        steps = {f.name: getattr(policy, f.name) for f in fields(policy)}.get("steps")
        length = int(first.request.canvas.shape[0]) - first.request.prompt_len
        if isinstance(steps, int) and steps <= length:
            return steps, steps
        return len(sequence_of(first.request, self.model.traits, layers=self.model.denoiser.layers).blocks), length


def _check_ids(items: Sequence[Item]) -> None:
    if not items:
        raise ConfigError("data", expected="at least one item", got="none")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise ConfigError("data", expected="every id once", got=f"{item.id!r} twice")
        seen.add(item.id)


def _refuse_for_choice(setup: Setup) -> None:
    """A likelihood has no decoding: what would be silently ignored is refused."""
    given = ["--" + n.replace("_", "-") for n in setup.options.said()]
    given += [f"--{name}" for name, value in (("max-tokens", setup.max_tokens), ("audit", setup.audit)) if value]
    given += ["--chat"] if setup.chat else []
    given += ["--system"] if setup.system is not None else []
    given += ["--n-samples"] if setup.n_samples > 1 else []
    given += ["--profile"] if setup.options.profile != "default" else []
    if given:
        raise ConfigError(
            "options without effect: " + ", ".join(given), expected="options of a likelihood (mc-num ...)",
            got="a task whose choices are scored, not written", remedy="Leave them out.",
        )  # fmt: skip


def _of_item(error: InputError, item: str) -> RequestError:
    too_long = error.what == "prompt and answer"
    remedy = TOO_LONG if too_long else error.remedy
    return RequestError(f"item {item}: {error.what}", expected=error.expected, got=error.got, remedy=remedy)


def as_messages(prompt: Prompt) -> list[Mapping[str, str]] | str:
    """A prompt in the form that JSON keeps."""
    return prompt if isinstance(prompt, str) else [dict(m) for m in prompt if isinstance(m, Mapping)]


def bos_text(model: Model) -> str:
    """The text of the tokenizer's first token, for raw prompts that begin with it."""
    codec = need_codec(model)
    token = codec.named("bos_token")
    if token is None:
        raise ConfigError("bos", expected="a tokenizer with a bos_token", got="none here")
    return codec.decode([token], skip_special=False)
