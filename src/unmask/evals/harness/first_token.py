"""Fast-dLLM v2's published likelihood: of the first token alone, with the rest of the answer in view.

Its script masks only the first answer token, appends EOS, fills the block with masks and reads one forward. For answers
of one token that is log p(token, EOS in view); for longer ones it is no likelihood of the answer (docs/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from unmask.core.errors import ConfigError
from unmask.core.types import BlockCausal
from unmask.evals.likelihood.canvas import lay_out
from unmask.evals.likelihood.forwards import Speaker
from unmask.pipeline import Model


def first_token(model: Model, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
    """log p of each answer's first token, in nats.

    Raises:
        ConfigError: a model that is no block-diffusion model.
    """
    traits = model.traits
    if not isinstance(traits.attention, BlockCausal) or traits.mask_id is None:
        raise ConfigError(
            "the published likelihood of Fast-dLLM v2", expected="a block-diffusion model", got=model.family
        )
    canvases = []
    for prompt, answer in pairs:
        pair = lay_out(traits, prompt, [*answer, traits.eos_ids[0]], model.vocab_size)
        first = len(prompt)
        canvases.append(pair.canvas(pair.parts[0], (first,), (first,)))
    return [spoken.total for spoken in Speaker(model.denoiser)(canvases)]
