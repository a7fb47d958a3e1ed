"""Named checks of the house on the fake model; the mutation tests break the code and see which of them fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import matrix
import torch

from unmask import nano
from unmask import testing as t
from unmask.core import catalog
from unmask.core.events import Finished, Stepped
from unmask.core.types import Sampling, Traits
from unmask.decode.guidance import ClassifierFree

LAWS: dict[str, Callable[[], None]] = {}


def law(check: Callable[[], None]) -> Callable[[], None]:
    LAWS[check.__name__] = check
    return check


def broken(names: Iterable[str]) -> set[str]:
    """Those of the laws that do not hold now."""
    found = set()
    for name in names:
        try:
            LAWS[name]()
        except (AssertionError, IndexError, RuntimeError):
            found.add(name)
    return found


def _cells(traits: str, schedule: str, *caches: str) -> list[matrix.Cell]:
    policies = ("threshold(0.6)", "low_confidence(steps=10)")
    found = [matrix.Cell(traits, schedule, p, c) for p in policies for c in caches]
    return [c for c in found if t.serves(catalog.parse("cache", c.cache), matrix.TRAITS[traits])]


@law
def golden() -> None:
    """Rows computed and kept, forwards and answers are those of the table."""
    table = matrix.golden()
    cells = [
        *_cells("full", "blocks(4)", "none", "prefix", "dual"),
        *_cells("full-shift", "growing(3)", "none", "prefix", "dual(refresh=2)"),
        *_cells("block-causal", "blocks(5)", "none", "dual", "block"),
        *_cells("causal", "blocks(4)", "prefix", "block"),
        *_cells("context-causal", "blocks(2)", "none", "block"),
    ]
    for cell in cells:
        assert matrix.line(matrix.run(cell)) == table[cell.key], cell.key


@law
def contract() -> None:
    """need and keep inside the query, no forbidden row seen, no unkept row read (all asserted by `decode`)."""
    for traits in t.TRAITS:
        for schedule in ("blocks(4)", "growing(3)"):
            for cell in _cells(traits, schedule, "prefix", "dual", "boundary"):
                matrix.run(cell)


@law
def exactness() -> None:
    """Caches that call themselves exact change no token."""
    for traits in t.TRAITS:
        for schedule in ("blocks(4)", "blocks(5)"):
            plain = {c.policy: matrix.run(c).answers for c in _cells(traits, schedule, "none")}
            for cell in _cells(traits, schedule, "prefix(refresh=1)", "dual(refresh=1)", "dual", "boundary(refresh=1)"):
                if cell.exact:
                    assert matrix.run(cell).answers == plain[cell.policy], cell.key


@law
def oracle() -> None:
    """The engine writes what the page-long loop writes, in as many forwards."""
    for rule in ({"threshold": 0.6}, {"threshold": None, "steps": 9}):
        for name in ("full", "full-shift", "block-causal-off-grid"):
            for scale in (0.0, 0.7):
                _against_nano(t.TRAITS[name], rule, scale)
        _against_nano(replace(t.TRAITS["context-causal"], grid_origin="prompt"), rule, 0.0)


def _against_nano(traits: Traits, rule: dict[str, float | None], scale: float) -> None:
    fake = t.FakeDenoiser(traits)
    steps, threshold = rule.get("steps"), rule["threshold"]
    policy = f"low_confidence(steps={steps})" if steps else f"threshold({threshold})"
    guidance = ClassifierFree(scale + 1) if scale else None
    for prompt, length in (([3, 1, 4], 10), ([7], 9)):
        one = t.request(prompt, length, t.strategy("blocks(4)", policy, guidance=guidance))
        found = t.decode(fake, [one])
        right, nfe = nano.generate(
            fake.dense, prompt, length, t.MASK, block_length=4, shift=fake.traits.shift, cfg_scale=scale, **rule
        )  # type: ignore[arg-type]
        assert (found.answers["a"], found.nfe["a"]) == (right, nfe), (traits, rule, scale)


@law
def growing_oracle() -> None:
    """A growing canvas is the page-long loop, called block after block."""
    for name in ("full", "full-shift"):
        fake, prompt, answer = t.FakeDenoiser(t.TRAITS[name]), [5, 2], []
        for n in (3, 3, 3, 1):
            kind = fake.traits.shift
            answer += nano.generate(fake.dense, prompt + answer, n, t.MASK, block_length=3, threshold=0.6, shift=kind)[
                0
            ]
        found = t.decode(fake, [t.request(prompt, 10, t.strategy("growing(3)"))])
        assert found.answers["a"] == answer


@law
def guidance_masks_exactly_what_is_given() -> None:
    """The unconditional lane masks prompt and constraints; both are the conditional lane's."""
    fake = t.FakeDenoiser(t.TRAITS["full"])
    one = t.request([3, 1, 4], 5, t.strategy("whole", "left_to_right", guidance=ClassifierFree(2.0)), fixed={2: 6})
    canvas = torch.where(one.fixed, one.canvas, t.MASK)
    for position in (3, 4, 6, 7):
        lanes = torch.stack([canvas, torch.where(one.fixed, t.MASK, canvas)])
        conditional, blind = fake.dense(lanes)[:, position]
        logits = blind + 2.0 * (conditional - blind)
        logits[t.MASK] = -torch.inf
        canvas[position] = logits.argmax()
    assert t.decode(fake, [one]).answers["a"] == canvas[3:].tolist()


@law
def crowd_invariance() -> None:
    """A sampled request alone and beside seven others gives the same tokens; its seed decides them."""
    made = [
        t.request(
            [1 + i, 4],
            5 + i,
            t.strategy("blocks(4)", p, sampling=Sampling(temperature=0.8)),
            str(i),
            seed=i % 2,
        )
        for i, p in enumerate(("threshold(0.6)", "random(steps=6)", "dream('origin', steps=6)", "margin(steps=5)") * 2)
    ]
    together = t.decode(t.FakeDenoiser(t.TRAITS["full"]), made).answers
    for one in made:
        assert t.decode(t.FakeDenoiser(t.TRAITS["full"]), [one]).answers[one.id] == together[one.id]


@law
def seeds_matter() -> None:
    """Two seeds give two answers; two positions of one request draw two numbers."""
    hot = t.strategy("whole", "threshold(0.0)", sampling=Sampling(temperature=50.0))
    twins = [t.request([4, 4], 12, hot, str(i), seed=i) for i in range(2)]
    answers = t.decode(t.FakeDenoiser(t.TRAITS["full"], gain=0.0), twins).answers
    assert answers["0"] != answers["1"]
    assert all(len(set(a)) > 3 for a in answers.values())


@law
def cache_does_not_touch_the_noise() -> None:
    """A sampled run under an exact cache is the run without a cache."""
    hot = Sampling(temperature=0.8)
    runs = [
        t.decode(t.FakeDenoiser(t.TRAITS["full"]), t.crowd(t.strategy("blocks(4)", "random(steps=9)", c, sampling=hot)))
        for c in ("none", "dual(refresh=1)", "prefix(refresh=1)")
    ]
    assert runs[0].answers == runs[1].answers == runs[2].answers


@law
def ties() -> None:
    """Equal values: lower position first, then lower id."""
    flat = t.FakeDenoiser(t.TRAITS["full"], gain=0.0)
    for policy in ("low_confidence(steps=6)", "threshold(1.0)", "margin(steps=6)", "entropy(steps=6)", "factor(0.1)"):
        found = t.decode(flat, [t.request([4], 6, t.strategy("whole", policy))])
        order = [w[0] for e in found.events if isinstance(e, Stepped) for w in e.writes]
        assert order == sorted(order), f"{policy} writes in the order {order}"
        assert found.answers["a"] == [0] * 6


@law
def end_of_text_before_a_constraint_ends_nothing() -> None:
    """The answer reaches over every given token; after the last one the first EOS ends it."""
    fake = t.FakeDenoiser(t.Traits(t.MASK, eos_ids=(0,)), gain=0.0)
    found = t.decode(fake, [t.request([4], 8, t.strategy("blocks(2)"), fixed={4: 9})])
    end = next(e for e in found.events if isinstance(e, Finished))
    assert (end.reason, end.end) == ("stop", 1 + 5)


@law
def end_of_text_stops_early() -> None:
    """Nobody decodes what comes after EOS."""
    fake = t.FakeDenoiser(t.Traits(t.MASK, eos_ids=(0,)), gain=0.0)
    found = t.decode(fake, [t.request([4], 40, t.strategy("blocks(4)", "left_to_right"))])
    assert found.nfe["a"] == 1


@law
def mask_id_is_never_written() -> None:
    """Even where the model likes it best (asserted by `decode`)."""
    for seed in range(6):
        t.decode(t.FakeDenoiser(t.TRAITS["full"], seed), t.crowd(t.strategy("whole", "low_confidence(steps=2)")))


@law
def forwards_are_shared() -> None:
    """Model calls are the maximum over the requests, not their sum."""
    found = t.decode(t.FakeDenoiser(t.TRAITS["full"]), t.crowd(t.strategy("blocks(4)", "low_confidence(steps=10)")))
    assert found.calls == max(found.nfe.values()) < sum(found.nfe.values())


@law
def prefix_keeps_the_rows_before_the_block() -> None:
    """Kept rows: the prompt at the first entry, one block more at each further one; nothing inside a block."""
    found = t.decode(
        t.FakeDenoiser(t.TRAITS["full"]), [t.request([1, 2, 3], 8, t.strategy("blocks(4)", "left_to_right", "prefix"))]
    )
    assert found.kept == 3 + 7
    assert catalog.parse("cache", "prefix").exact_for(t.TRAITS["full"]) is False
