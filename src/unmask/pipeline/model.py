"""A model ready to use: denoiser, codec, and the checkpoint's own settings.

Enters: a source (nothing, a directory, a hub id, or `random:SHAPE`) and prompts. Leaves: events or `Generation`s.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from unmask.core.events import Event, tee
from unmask.core.protocols import Sink
from unmask.core.types import Request, Traits
from unmask.engine.engine import Engine
from unmask.models.backbone import AnyDenoiser, denoiser_of
from unmask.models.embedded import DEFAULT, embedded
from unmask.models.family import Family, Recommended, find_family
from unmask.models.load import load_model
from unmask.models.recommend import recommended
from unmask.models.shapes import random_model
from unmask.pipeline.ask import Ask, Prompt, as_prompts, whole
from unmask.pipeline.generation import Collector, Generation
from unmask.pipeline.request import Prepared, prepare, prepare_one
from unmask.text.codec import Codec

if TYPE_CHECKING:
    import torch

Events = Generator[Event, None, None]
RANDOM = "random:"


@dataclass(frozen=True)
class Model:
    """A loaded model. Every call makes an engine of its own, so calls share nothing; a `ChatSession` keeps one.

    Args:
        codec: None for a model without tokenizer; prompts are ids then.
        config: config.json as published. directory: where its files are, None for random weights.
        slots: sequences (and guidance lanes) decoded at the same time; more wait in order.
    """

    denoiser: AnyDenoiser
    codec: Codec | None
    kind: Family
    config: Mapping[str, Any]
    name: str
    directory: Path | None = None
    slots: int = 8

    # ---- questions ---------------------------------------------------------------------------------------------------

    @property
    def family(self) -> str:
        """The family's name, such as "LLaDA"."""
        return self.kind.name

    @property
    def traits(self) -> Traits:
        return self.denoiser.traits

    @property
    def vocab_size(self) -> int:
        """Rows of the output matrix."""
        return int(self.denoiser.head.weight.shape[0])

    @property
    def has_chat(self) -> bool:
        """Whether the checkpoint has a chat template."""
        return self.codec is not None and self.codec.has_template

    @property
    def turn_ends(self) -> tuple[int, ...]:
        """Ids, besides EOS, that end an assistant's turn."""
        found = [self.codec.token_id(name) for name in self.kind.turn_end] if self.codec is not None else []
        return tuple(i for i in found if i is not None)

    def recommended(self, max_tokens: int | None = None, chat: bool | None = None) -> Recommended:
        """The checkpoint's own settings for an answer of that length."""
        chat = self.has_chat if chat is None else chat
        return recommended(self.kind, self.config, chat=chat, max_tokens=max_tokens, directory=self.directory)

    # ---- work --------------------------------------------------------------------------------------------------------

    def request(self, prompt: Prompt, id: str = "0", **given: Any) -> Request:
        """The engine's request for one prompt; keywords as in `generate`."""
        return prepare_one(self, prompt, Ask.of(given), id).request

    def prepare(self, prompts: Prompt | Sequence[Prompt], **given: Any) -> list[Prepared]:
        """Checked requests for prompts, with their settings; keywords as in `generate`."""
        return prepare(self, as_prompts(prompts)[0], Ask.of(given))

    def stream(self, prompts: Prompt | Sequence[Prompt], **given: Any) -> Events:
        """Events of all prompts, decoded together; keywords as in `generate`. Input is checked before the first event.

        Closing the iterator cancels what is still running.
        """
        return self.events(self.prepare(prompts, **given))

    def events(self, prepared: Sequence[Prepared], engine: Engine | None = None) -> Events:
        """Events of prepared requests, decoded together, on an engine of their own or on this one."""
        engine = Engine(self.denoiser, self.slots) if engine is None else engine
        for one in prepared:
            engine.submit(one.request)
        return _until_closed(engine, [one.request.id for one in prepared])

    def collector(self, prepared: Sequence[Prepared]) -> Collector:
        """A sink that turns the events of these requests into `Generation`s."""
        return Collector(prepared, self.codec, self.traits)

    @overload
    def generate(
        self, prompts: str, *, samples: Literal[1] = 1, sinks: Sequence[Sink] = (), **given: Any
    ) -> Generation: ...

    @overload
    def generate(
        self, prompts: Prompt | Sequence[Prompt], *, samples: int = 1, sinks: Sequence[Sink] = (), **given: Any
    ) -> Generation | list[Generation]: ...

    def generate(
        self, prompts: Prompt | Sequence[Prompt], *, samples: int = 1, sinks: Sequence[Sink] = (), **given: Any
    ) -> Generation | list[Generation]:
        """Answers for one prompt or many, decoded together.

        Args:
            prompts: a text, chat messages, or ids; or a list of such.
            samples: answers per prompt; the k-th has seed + k.
            sinks: see every event as it happens (a live canvas, a recorder).
            given: fields of `Ask` (chat, system, max_tokens, seed, stop, constraints, template) and of `DecodeOptions`
                (steps, block_length, threshold, policy, cache, temperature ...).

        Returns:
            One `Generation` for one prompt with one sample, else a list: prompt by prompt, sample by sample.

        Raises:
            InputError: a prompt, length, constraint or option that cannot be honoured; nothing has run then.
            RunError: a request that failed on the way.
        """
        many, single = as_prompts(prompts)
        prepared = prepare(self, many, Ask.of({**given, "samples": samples}))
        collect = self.collector(prepared)
        for event in tee(self.events(prepared), *sinks):
            collect(event)
        found = [collect.generations[p.request.id] for p in prepared]
        return found[0] if single and len(found) == 1 else found


def _until_closed(engine: Engine, ids: list[str]) -> Events:
    try:
        yield from engine.run()
    finally:
        for id in ids:
            engine.cancel(id)


def load(
    source: str | Path | None = None,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    slots: int = 8,
) -> Model:
    """A model from nothing (the embedded default), a local directory, the name of an embedded model (`nano`, `nano-ar`,
    `nano-llada`, `nano-birwkv`; a directory of that name goes first), a hub id, or `random:SHAPE` (`random:llada-mid`).

    Args:
        revision: branch, tag or commit of a hub id.
        dtype: "auto", "bf16", "fp16" or "fp32". device: "auto" (cuda, mps, cpu) or a torch device.
        slots: sequences decoded at the same time.

    Raises:
        InputError: a source that is missing, damaged, foreign or inconsistent.
    """
    whole("slots", slots, 1)
    if isinstance(source, str) and source.startswith(RANDOM):
        return _random(source, dtype, device, slots)
    found = load_model(embedded() if source is None else source, revision, dtype, device)
    codec = Codec.from_dir(found.tokenizer_dir) if found.tokenizer_dir is not None else None
    denoiser = denoiser_of(found.model, found.traits)
    name = DEFAULT if source is None else str(source)
    return Model(denoiser, codec, found.family, found.config, name, found.path, slots)


def _random(source: str, dtype: str | torch.dtype, device: str | torch.device, slots: int) -> Model:
    model, config = random_model(source.removeprefix(RANDOM), dtype=dtype, device=device)
    family = find_family(config)
    return Model(denoiser_of(model, family.traits(config)), None, family, config, source, None, slots)


@overload
def generate(prompt: str, model: Model | str | Path | None = None, **given: Any) -> Generation: ...


@overload
def generate(
    prompt: Prompt | Sequence[Prompt], model: Model | str | Path | None = None, **given: Any
) -> Generation | list[Generation]: ...


def generate(
    prompt: Prompt | Sequence[Prompt], model: Model | str | Path | None = None, **given: Any
) -> Generation | list[Generation]:
    """Answers by a model (loaded, or named; None is the embedded one); keywords as in `Model.generate`."""
    return (model if isinstance(model, Model) else load(model)).generate(prompt, **given)
