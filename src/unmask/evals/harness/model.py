"""A model of ours as lm-eval's model object: texts and likelihoods for its requests.

Enters: lists of lm-eval's `Instance`s. Leaves: answers in the order of the requests. Every request keeps its own stop
strings, length and seed; all are decoded by the one engine, and no answer depends on how many processes there are.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from unmask.core.errors import ConfigError, InputError, RequestError
from unmask.engine.engine import Engine
from unmask.evals.harness.bridge import DEFAULT_TOKENS, Bridge
from unmask.evals.harness.first_token import first_token
from unmask.evals.harness.processes import Processes
from unmask.evals.likelihood import log_likelihoods
from unmask.evals.likelihood.score import resolve_method
from unmask.evals.likelihood.text import encode_pair
from unmask.evals.runner.known import LIKELIHOOD_ON_INSTRUCT, WITHOUT_TEMPLATE, is_instruct
from unmask.evals.runner.plan import bos_text, item_seed
from unmask.evals.tasks.gsm8k import BOXED
from unmask.pipeline import Generation, Model
from unmask.pipeline.ask import Ask, Prompt
from unmask.pipeline.request import Prepared, need_codec, prepare_one, prompt_ids, uses_chat

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_length")
"""What tasks call the length of an answer; the first one that is there counts."""
SAMPLING = ("temperature", "top_p", "top_k")
QUIET = {"until", "do_sample", *SAMPLING, *LENGTHS}
"""Generation options of a task that are followed, or mean nothing here."""
PAIRS = 64
"""Pairs scored together: the unit that a process takes."""
WISHES = {"gsm8k": "Answer:", "minerva_math": "Solution:"}
"""What Fast-dLLM v2's script replaces by a wish for a boxed answer, by the beginning of the task's name."""

Pair = tuple[list[int], list[int]]
Warn = Callable[[str], None]
Shown = Callable[[int, int], None]


@dataclass(frozen=True)
class _Job:
    prepared: Prepared
    rendered: bool


@dataclass(frozen=True)
class _Said:
    """An answer and its cost, as it travels between processes."""

    text: str
    tokens: int
    nfe: int
    seconds: float


class HarnessModel(LM):  # type: ignore[misc]
    """For `lm_eval.simple_evaluate(model=...)`.

    Args:
        model: a loaded model with a tokenizer. bridge: how its answers are made.
        processes: this process among others. warn: takes known problems, each once (default: a log line).
        progress: takes (done, total) of this process after every group.

    Attributes:
        spent: tokens, forwards and seconds of all answers so far.

    Raises:
        InputError: a model without tokenizer, or options it cannot follow.
    """

    counted: ClassVar[str] = "visible tokens: no prompt, no EOS, nothing behind a stop string"

    def __init__(
        self,
        model: Model,
        bridge: Bridge | None = None,
        processes: Processes | None = None,
        warn: Warn | None = None,
        progress: Shown | None = None,
    ) -> None:
        super().__init__()
        need_codec(model)
        self.model, self.bridge = model, Bridge() if bridge is None else bridge
        self.processes = Processes() if processes is None else processes
        self.spent = {"tokens": 0, "nfe": 0, "seconds": 0.0}
        self._device = model.denoiser.device
        self._warn_by = logging.getLogger(__name__).warning if warn is None else warn
        self._progress, self._warned = progress, set[str]()
        self._rendered: dict[str, list[dict[str, str]]] = {}

    # ---- chat --------------------------------------------------------------------------------------------------------

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text; with a last assistant message and no new turn, that message goes on."""
        codec, last = need_codec(self.model), chat_history[-1]
        if not add_generation_prompt and last["role"] == "assistant":
            text = codec.render_chat(chat_history[:-1]) + last["content"]
            self._rendered[text] = []
            return text
        text = codec.render_chat(chat_history, add_generation_prompt)
        self._rendered[text] = list(chat_history) if add_generation_prompt else []
        return text

    @property
    def tokenizer_name(self) -> str:
        """A name for lm-eval's cache of rendered requests: of the checkpoint and its template."""
        digest = hashlib.sha256((need_codec(self.model).template or "").encode()).hexdigest()[:8]
        return re.sub(r"[^A-Za-z0-9._-]+", "__", f"{self.model.name}-{digest}")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's own text; there is one, so no name can choose another."""
        if isinstance(chat_template, str) and chat_template != "default":
            raise ConfigError("chat template", expected="the checkpoint's own (default)", got=chat_template)
        return need_codec(self.model).template

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside the results."""
        weight, bridge = self.model.denoiser.head.weight, self.bridge
        return {
            "model_name": self.model.name,
            "family": self.model.family,
            "model_dtype": str(weight.dtype).removeprefix("torch."),
            "decoding": {"profile": bridge.options.profile, **bridge.options.said(), "max_tokens": bridge.max_tokens},
            "scoring": bridge.scoring.words,
            "published_script": bridge.published or None,
        }

    # ---- texts -------------------------------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers in the order of the requests; each with its own stop strings and length.

        Raises:
            InputError: a prompt or option that cannot be honoured; nothing has run then.
        """
        seen: dict[tuple[Any, ...], int] = {}
        jobs = [self._job(i, r, seen) for i, r in enumerate(requests)]
        if is_instruct(self.model) and self.model.has_chat and not all(j.rendered for j in jobs):
            self._warn(f"{WITHOUT_TEMPLATE}; add --apply-chat-template, unless you repeat a run that had none")
        size = self.bridge.batch
        groups = [jobs[i : i + size] for i in range(0, len(jobs), size)]
        found = self.processes.map(self._shown(self._decode, groups), groups)
        for request, said in zip(requests, found, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, said.text)
        self.spent["tokens"] += sum(s.tokens for s in found)
        self.spent["nfe"] += sum(s.nfe for s in found)
        self.spent["seconds"] += sum(s.seconds for s in found) / self.processes.world
        return [said.text for said in found]

    def _job(self, index: int, request: Any, seen: dict[tuple[Any, ...], int]) -> _Job:
        context, given = request.args
        name = (request.task_name, request.doc_id, request.idx)
        repeat = seen[name] = seen.get(name, -1) + 1
        prompt, chat, rendered = self._prompt(str(context), str(request.task_name))
        stops = self._stops(request, given) if self.bridge.cut else ()
        ask = Ask(
            chat,
            max_tokens=self._length(given),
            stop=stops,
            seed=item_seed(self.bridge.seed, "/".join(map(str, name)), repeat),
            options=self._options(given),
        )
        try:
            prompt, ask = self._fitting(prompt, ask)
            return _Job(prepare_one(self.model, prompt, ask, str(index)), rendered)
        except InputError as error:
            what = f"{request.task_name}, document {request.doc_id}: {error.what}"
            raise RequestError(what, expected=error.expected, got=error.got, remedy=error.remedy) from None

    def _edited(self, context: str, task: str) -> str:
        """The prompt, with the published wish for a boxed answer where the script has it."""
        if self.bridge.boxed:
            for begin, words in WISHES.items():
                context = context.replace(words, BOXED) if task.startswith(begin) else context
        return context

    def _prompt(self, context: str, task: str) -> tuple[Prompt, bool, bool]:
        """The prompt, whether it is a conversation, and whether a template wrote or will write it."""
        messages, edited = self._rendered.get(context), self._edited(context, task)
        if messages:
            return [{**m, "content": self._edited(m["content"], task)} for m in messages], True, True
        if messages is not None:  # the answer was begun already
            return need_codec(self.model).encode(edited), True, True
        if self.bridge.wrap:
            return [{"role": "user", "content": edited}], True, True
        return self._begin() + edited, False, False

    def _begin(self) -> str:
        return bos_text(self.model) if self.bridge.bos else ""

    def _stops(self, request: Any, given: Mapping[str, Any]) -> tuple[str, ...]:
        if self.bridge.whole_code and str(dict(request.doc).get("task_id", "")).lower().startswith("humaneval"):
            return ()
        until = given.get("until") or ()
        stops = [until] if isinstance(until, str) else until
        if not isinstance(stops, list | tuple) or not all(isinstance(s, str) for s in stops):
            raise ConfigError("until of the task", expected="a text, or a list of texts", got=repr(until))
        return tuple(s for s in stops if s)

    def _length(self, given: Mapping[str, Any]) -> int:
        asked = next((given[n] for n in LENGTHS if given.get(n) is not None), None)
        mine = self.bridge.max_tokens
        if mine is not None and asked not in (None, mine):
            self._warn(f"the task asks for answers of {asked} tokens; they have {mine}, as you said")
        wanted = mine if mine is not None else DEFAULT_TOKENS if asked is None else asked
        if type(wanted) is not int or wanted < 1:
            raise ConfigError("max_gen_toks of the task", expected="an integer from 1", got=repr(wanted))
        return wanted

    def _options(self, given: Mapping[str, Any]) -> Any:
        """The decoding options, with the task's own sampling where the user said nothing."""
        for name in given:
            if name not in QUIET:
                self._warn(f"the task's generation option {name!r} has no effect here")
        sampled = bool(given.get("do_sample")) or bool(given.get("temperature"))
        if not sampled:
            return self.bridge.options
        if self.bridge.published:
            self._warn(f"the task's sampling options have no effect, as in the script of {self.bridge.published}")
            return self.bridge.options
        said = self.bridge.options.said()
        own = {n: given[n] for n in SAMPLING if given.get(n) is not None and n not in said}
        return replace(self.bridge.options, **own)

    def _fitting(self, prompt: Prompt, ask: Ask) -> tuple[Prompt, Ask]:
        """A prompt that is too long loses its beginning, as lm-eval's own models do; ends of turn go on counting."""
        chat = bool(ask.chat)
        is_text = isinstance(prompt, str) or isinstance(prompt[0], Mapping)
        ids = prompt_ids(self.model, prompt, ask, uses_chat(self.model, prompt, ask))
        room = self._limit - (ask.length or 0)
        if room < 1:
            raise RequestError("answer length", expected=f"less than {self._limit}", got=str(ask.length))
        if is_text and len(ids) <= room:
            return prompt, ask
        if len(ids) > room:
            self._warn(f"prompts of more than {room} tokens are cut on the left to leave room for the answer")
        ends = self.model.kind.turn_end if chat and ask.options.profile == "default" else ()
        return ids[-room:], replace(ask, chat=None, stop=(*ask.stops, *ends))

    @property
    def _limit(self) -> int:
        own, most = self.bridge.max_length, self.model.traits.max_len
        return most if own is None else min(own, most)

    def _decode(self, group: Sequence[_Job]) -> list[_Said]:
        prepared = [j.prepared for j in group]
        lanes = max(1 if (g := p.request.strategy.guidance) is None else g.lanes for p in prepared)
        collect, begun = self.model.collector(prepared), time.perf_counter()
        for event in self.model.events(prepared, Engine(self.model.denoiser, len(prepared) * lanes)):
            collect(event)
        seconds = (time.perf_counter() - begun) / len(group)
        found: list[Generation] = [collect.generations[p.request.id] for p in prepared]
        return [_Said(g.text, g.completion_tokens, g.nfe, seconds) for g in found]

    # ---- likelihoods -------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p, whether greedy decoding writes it) of each (context, continuation), in nats.

        The second is False where it was not asked for (`Scoring.greedy`), but for autoregressive models.
        """
        if is_instruct(self.model):
            self._warn(LIKELIHOOD_ON_INSTRUCT)
        pairs = [self._pair(str(context), str(continuation)) for context, continuation in (r.args for r in requests)]
        found = self._score(pairs)
        for request, one in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, one)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts after BOS (or EOS), window by window; a lower bound on masked models.

        Raises:
            ConfigError: the likelihood of a published script, which is not defined for whole texts.
        """
        method = "Fast-dLLM v2's first token" if self.bridge.first_token else self.bridge.scoring.method
        if self.bridge.first_token or method in ("llada", "dream"):
            raise ConfigError(
                f"perplexity of whole texts by method {method}", expected="bound, left_to_right or exact",
                got="an estimate that its authors define for an answer to a prompt only",
                remedy="Leave --method out.",
            )  # fmt: skip
        windows = [self._windows(str(r.args[0])) for r in requests]
        values = iter(self._score([pair for own in windows for pair in own]))
        found = [sum(next(values)[0] for _ in own) for own in windows]
        for request, value in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return found

    def _windows(self, text: str) -> list[Pair]:
        ids = need_codec(self.model).encode(text)
        rolling = get_rolling_token_windows(ids, self._prefix(), self._limit - 1, 1)
        return [(list(a), list(b)) for a, b in map(make_disjoint_window, rolling)]

    def _prefix(self) -> int:
        """What stands before a text that nothing stands before."""
        token = need_codec(self.model).named("bos_token")
        return self.model.traits.eos_ids[0] if token is None else token

    def _pair(self, context: str, continuation: str) -> Pair:
        begin = "" if context in self._rendered else self._begin()
        if begin + context:
            prompt, answer = encode_pair(self.model, begin + context, continuation)
        else:
            prompt, answer = [self._prefix()], need_codec(self.model).encode(continuation)
        room = self._limit - len(answer) - (self.bridge.scoring.method == "dream")
        if room < 0:
            raise RequestError("continuation", expected=f"at most {self._limit} tokens", got=str(len(answer)))
        if len(prompt) > room:
            self._warn("contexts that do not fit beside their continuation are cut on the left")
        return prompt[len(prompt) - min(room, len(prompt)) :], answer

    def _score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        groups = [pairs[i : i + PAIRS] for i in range(0, len(pairs), PAIRS)]
        return self.processes.map(self._shown(self._scored, groups), groups)

    def _scored(self, group: Sequence[Pair]) -> list[tuple[float, bool]]:
        if self.bridge.first_token:
            return [(value, False) for value in first_token(self.model, group)]
        scoring = replace(self.bridge.scoring, seed=self.bridge.seed)
        if resolve_method(scoring, self.model.traits) == "exact":
            scoring = replace(scoring, greedy=True)  # one look at what was computed anyway
        return [(one.value, bool(one.greedy)) for one in log_likelihoods(self.model, group, scoring=scoring)]

    # ---- words -------------------------------------------------------------------------------------------------------

    def _shown(self, do: Callable[[Any], list[Any]], groups: Sequence[Sequence[Any]]) -> Callable[[Any], list[Any]]:
        """The same work, with the progress of this process after each group."""
        rank, world = self.processes.rank, self.processes.world
        total, done = sum(len(g) for g in groups[rank::world]), [0]

        def shown(group: Sequence[Any]) -> list[Any]:
            found = do(group)
            done[0] += len(group)
            if self._progress is not None:
                self._progress(done[0], total)
            return found

        return shown

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._warn_by(text)
