"""A prompt and an `Ask` become a `Request`: ids, holes, fixed positions, stops; every length is checked here.

Enters: one prompt. Leaves: `Prepared` (request, settings, stop strings), or a `RequestError` with the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from unmask.core.errors import RequestError
from unmask.core.types import Request, Strategy
from unmask.engine.engine import sequence_of
from unmask.engine.profiles import answer_length
from unmask.models.recommend import DEFAULT_TOKENS
from unmask.pipeline.ask import Ask, Prompt
from unmask.pipeline.settings import CHECKPOINT, DEFAULT, GIVEN, Settings, resolve
from unmask.text import constraints as words
from unmask.text import template as infill
from unmask.text.codec import Codec
from unmask.text.stop import StopStrings

if TYPE_CHECKING:
    from unmask.models.family import Recommended
    from unmask.pipeline.model import Model


@dataclass(frozen=True)
class Prepared:
    """A request and what is needed to read its answer. index, sample: which prompt, which of its samples."""

    request: Request
    settings: Settings
    stops: StopStrings | None
    index: int = 0
    sample: int = 0


def prepare(model: Model, prompts: Sequence[Prompt], ask: Ask) -> list[Prepared]:
    """Requests for every prompt and sample: ids "0", "1" ..., or "0.0", "0.1" ... with several samples."""
    out = []
    for index, prompt in enumerate(prompts):
        try:
            one = prepare_one(model, prompt, ask, str(index))
        except RequestError as error:
            raise _of_prompt(error, index, len(prompts)) from None
        if ask.samples == 1:
            out.append(replace(one, index=index))
            continue
        for k in range(ask.samples):
            request = replace(one.request, id=f"{index}.{k}", seed=ask.seed + k)
            out.append(replace(one, request=request, index=index, sample=k))
    return out


def prepare_one(model: Model, prompt: Prompt, ask: Ask, id: str) -> Prepared:
    """The request for one prompt, with the ask's own seed."""
    chat = uses_chat(model, prompt, ask)
    ids = prompt_ids(model, prompt, ask, chat)
    given = _answer_template(model, ask)
    length, length_by, advice = _length(model, len(ids), chat, ask.length if given is None else len(given))
    settings = resolve(ask.options, advice, model.traits, model.kind.model_type, length, length_by)
    if given is None:
        length = answer_length(ask.options, len(ids), length)
        given = [None] * length
        for position, token in _constraints(model, ask, length).items():
            given[position] = token
    stops = _stops(model, ask, chat, floor=max((i + 1 for i, t in enumerate(given) if t is not None), default=0))
    request = Request(
        id=id,
        canvas=torch.tensor([*ids, *(_hole(model) if t is None else t for t in given)], dtype=torch.int64),
        fixed=torch.tensor([True] * len(ids) + [t is not None for t in given]),
        prompt_len=len(ids),
        strategy=_without_ends(_demoting_turn_ends(settings.strategy, model), model, given),
        stop=stops,
        seed=ask.seed,
    )
    sequence_of(request, model.traits, layers=model.denoiser.layers)
    return Prepared(request, settings, stops)


def _demoting_turn_ends(strategy: Strategy, model: Model) -> Strategy:
    """Where EOS is demoted (confidence_eos_eot_inf), the end-of-turn tokens are too: only the tokenizer knows them."""
    sampling = strategy.sampling
    if not sampling.demote:
        return strategy
    ends = tuple(dict.fromkeys((*sampling.demote, *model.turn_ends)))
    return replace(strategy, sampling=replace(sampling, demote=ends))


def _without_ends(strategy: Strategy, model: Model, given: Sequence[int | None]) -> Strategy:
    """An answer that ends with given text has no end of its own: EOS and turn ends are closed, lest they leave gaps."""
    if not given or given[-1] is None:
        return strategy
    sampling = strategy.sampling
    closed = tuple(dict.fromkeys((*sampling.suppress, *model.traits.eos_ids, *model.turn_ends)))
    return replace(strategy, sampling=replace(sampling, suppress=closed))


# ---- the prompt ------------------------------------------------------------------------------------------------------


def uses_chat(model: Model, prompt: Prompt, ask: Ask) -> bool:
    """Whether this prompt goes through the chat template."""
    if is_ids(prompt):
        return False
    if ask.chat is not None:
        return ask.chat
    templated = model.codec is not None and model.codec.has_template
    return templated or not isinstance(prompt, str) or ask.system is not None


def prompt_ids(model: Model, prompt: Prompt, ask: Ask, chat: bool) -> list[int]:
    """The prompt as ids inside the model's vocabulary.

    Raises:
        RequestError: an empty prompt, no tokenizer, no template, or an id the model does not have.
    """
    if is_ids(prompt):
        ids = [int(i) for i in prompt]  # type: ignore[arg-type]
    elif chat:
        ids = need_codec(model).encode_chat(messages_of(prompt, ask.system))
    else:
        ids = need_codec(model).encode(_raw_text(prompt, ask))
    if not ids and ask.template is None:
        raise RequestError("prompt", expected="at least one token", got="an empty prompt")
    bad = next((i for i in ids if not 0 <= i < model.vocab_size), None)
    if bad is not None:
        remedy = "The tokenizer and the weights do not belong together." if not is_ids(prompt) else ""
        raise RequestError("prompt", expected=f"ids from 0 to {model.vocab_size - 1}", got=str(bad), remedy=remedy)
    return ids


def messages_of(prompt: Prompt, system: str | None) -> list[Mapping[str, str]]:
    """Chat messages for a text or a list of messages, the system message first."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise RequestError("prompt", expected="a text", got="an empty prompt")
        messages: list[Mapping[str, str]] = [{"role": "user", "content": prompt}]
    else:
        messages = list(prompt)  # type: ignore[arg-type]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def is_ids(prompt: Prompt) -> bool:
    """Whether a prompt is given as ids (an empty list is an empty prompt in ids)."""
    return not isinstance(prompt, str) and all(isinstance(i, int) and not isinstance(i, bool) for i in prompt)


def need_codec(model: Model) -> Codec:
    """The model's codec.

    Raises:
        RequestError: a model without tokenizer.
    """
    if model.codec is None:
        remedy = "Put the tokenizer files next to the weights, or give the prompt as ids."
        raise RequestError("text", expected="a model with a tokenizer", got=f"none in {model.name}", remedy=remedy)
    return model.codec


def _raw_text(prompt: Prompt, ask: Ask) -> str:
    if not isinstance(prompt, str):
        raise RequestError(
            "prompt", expected="a text (raw form)", got="chat messages", remedy="Leave out chat=False / --raw."
        )
    if not prompt.strip() and ask.template is None:
        raise RequestError("prompt", expected="a text", got="an empty prompt")
    return prompt


# ---- the answer ------------------------------------------------------------------------------------------------------


def _length(model: Model, prompt: int, chat: bool, wanted: int | None) -> tuple[int, str, Recommended]:
    """The answer's length, who decided it, and the checkpoint's advice for it. Not asked for, it is cut to fit."""
    room = model.traits.max_len - prompt
    advice = model.recommended(wanted, chat)
    length = wanted if wanted is not None else min(advice.gen_length, room)
    if room < 1 or length > room:
        answer = max(length, 1)
        raise RequestError(
            "prompt and answer",
            expected=f"at most {model.traits.max_len} tokens",
            got=f"{prompt} of the prompt + {answer} of the answer = {prompt + answer}",
            remedy="Shorten the prompt or ask for fewer tokens.",
        )
    if wanted is not None:
        return length, GIVEN, advice
    if length == advice.gen_length:
        return length, DEFAULT if length == DEFAULT_TOKENS else CHECKPOINT, advice
    return length, DEFAULT, model.recommended(length, chat)


def _answer_template(model: Model, ask: Ask) -> list[int | None] | None:
    if ask.template is None:
        return None
    given = infill.fill(ask.template, need_codec(model))
    if ask.length not in (None, len(given)):
        raise RequestError("answer length", expected=f"{len(given)}, the template's own", got=str(ask.length))
    return given


def _constraints(model: Model, ask: Ask, length: int) -> dict[int, int]:
    return words.place(ask.constraints, need_codec(model), length) if ask.constraints else {}


def _stops(model: Model, ask: Ask, chat: bool, floor: int) -> StopStrings | None:
    """The user's stop strings and, in a chat of the default profile, the end of a turn."""
    if model.codec is None:
        if ask.stops:
            need_codec(model)
        return None
    ends = model.turn_ends if chat and ask.options.profile == "default" else ()
    return StopStrings(model.codec, ask.stops, ends, floor) if ask.stops or ends else None


def _hole(model: Model) -> int:
    return 0 if model.traits.mask_id is None else model.traits.mask_id


def _of_prompt(error: RequestError, index: int, count: int) -> RequestError:
    """Names the prompt when there are several."""
    if count == 1:
        return error
    return RequestError(f"prompt {index}: {error.what}", expected=error.expected, got=error.got, remedy=error.remedy)
