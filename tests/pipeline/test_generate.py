from dataclasses import replace

import pytest
from tiny_checkpoints import MAX_LEN

import unmask
from unmask.core.events import Accepted, Failed, Finished, Stepped, fold
from unmask.core.types import Full, Traits
from unmask.engine.engine import Engine

FAMILIES = ["llada", "dream", "qwen2"]
PROMPTS = ["a", "Why is the sky blue?", "The quick brown fox jumps over the lazy dog. " * 2]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chat", [True, False])
def test_text_in_text_out(tiny_models, family, chat):
    model = tiny_models[family]
    found = model.generate(PROMPTS[1], chat=chat, max_tokens=12)
    codec = model.codec
    ids = codec.encode_chat([{"role": "user", "content": PROMPTS[1]}]) if chat else codec.encode(PROMPTS[1])
    assert found.canvas.ids[: found.prompt_tokens] == ids
    assert found.text == codec.decode(found.ids)
    assert found.completion_tokens <= len(found.ids) <= 12
    assert found.nfe >= 1
    assert found.seconds > 0
    assert found.finish_reason in ("stop", "length")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.8}])
def test_a_crowd_changes_no_answer_and_shares_forwards(tiny_models, family, options, monkeypatch):
    model = tiny_models[family]
    alone = [model.generate(p, max_tokens=8, seed=5, **options) for p in PROMPTS]
    engines = []
    monkeypatch.setattr("unmask.pipeline.model.Engine", lambda d, s: engines.append(Engine(d, s)) or engines[-1])
    together = model.generate(PROMPTS, max_tokens=8, seed=5, **options)
    assert [g.ids for g in together] == [g.ids for g in alone]
    assert [g.index for g in together] == [0, 1, 2]
    assert engines[0].stats.model_calls == max(g.nfe for g in together)


def test_samples_have_their_own_seeds(tiny):
    found = tiny.generate(PROMPTS[:2], max_tokens=8, samples=3, temperature=1.0, seed=7)
    assert [(g.index, g.sample) for g in found] == [(i, k) for i in range(2) for k in range(3)]
    assert len({g.ids for g in found[:3]}) > 1
    assert found[2].ids == tiny.generate(PROMPTS[0], max_tokens=8, temperature=1.0, seed=9).ids
    assert len(tiny.generate("a", max_tokens=4, samples=2)) == 2


def test_prompt_forms(tiny):
    ids = tiny.codec.encode("hi there")
    assert tiny.generate(ids, max_tokens=4).canvas.ids[: len(ids)] == ids
    assert tiny.generate("hi there", chat=False, max_tokens=4).ids == tiny.generate(ids, max_tokens=4).ids
    chat = [{"role": "user", "content": "hi"}]
    assert tiny.generate(chat, max_tokens=4).ids == tiny.generate("hi", max_tokens=4).ids
    assert len(tiny.generate([chat, "hi", ids], max_tokens=4)) == 3
    with_system = [{"role": "system", "content": "s"}, *chat]
    assert tiny.generate("hi", system="s", max_tokens=4).canvas == tiny.generate(with_system, max_tokens=4).canvas


def test_a_mask_id_in_the_prompt_is_no_hole(tiny):
    mask = tiny.traits.mask_id
    found = tiny.generate("a <|mdm_mask|> b", chat=False, max_tokens=6)
    prompt = found.canvas.ids[: found.prompt_tokens]
    assert mask in prompt
    assert all(found.canvas.fixed[: found.prompt_tokens])
    assert mask not in found.ids
    assert len(found.ids) == 6 or found.finish_reason == "stop"


def test_constraints_stand_where_they_were_put(tiny):
    found = tiny.generate("x", constraints="3:fox, 9:dog", max_tokens=16)
    for position, word in ((3, " fox"), (9, " dog")):
        ids = tiny.codec.encode(word)
        assert list(found.ids[position : position + len(ids)]) == ids
    given = len(tiny.codec.encode(" fox")) + len(tiny.codec.encode(" dog"))
    assert found.completion_tokens <= len(found.ids) - given


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt", ["Fill in:", ""])
def test_infilling(tiny_models, family, prompt):
    model = tiny_models[family]
    found = model.generate(prompt, template="The [[4]] sat on the [[3]].", chat=False)
    assert found.text.startswith("The ")
    assert " sat on the " in found.text
    assert found.text.endswith(".")
    assert found.prompt_tokens == len(model.codec.encode(prompt))
    assert found.completion_tokens <= 7


def test_a_turn_end_inside_a_template_ends_nothing(tiny, monkeypatch):
    """Whatever the model writes into the holes, the given text after them is shown."""
    eot = tiny.codec.token_id("<|eot_id|>")
    monkeypatch.setattr(type(tiny), "turn_ends", property(lambda m: (eot, *range(m.vocab_size))))
    assert tiny.generate("x", template="The [[4]] end.").text.endswith(" end.")
    assert tiny.generate("x", max_tokens=4).ids == ()


def test_stop_strings_cut_exactly(tiny_models):
    model = tiny_models["qwen2"]
    whole = model.generate("x", max_tokens=12, temperature=1.0, seed=3)
    stop = whole.text[3:5]
    found = model.generate("x", max_tokens=12, temperature=1.0, seed=3, stop=stop)
    assert found.text == whole.text[: whole.text.index(stop)]
    assert found.finish_reason == "stop"
    assert found.nfe < whole.nfe
    assert found.completion_tokens <= len(found.ids) < len(whole.ids)


def test_counts_leave_out_eos_and_padding(tiny):
    eos = tiny.traits.eos_ids[0]
    every = replace(tiny, denoiser=_AllEos(tiny.denoiser, eos))
    found = every.generate("x", max_tokens=8)
    assert (found.text, found.ids, found.completion_tokens, found.finish_reason) == ("", (), 0, "stop")


class _AllEos:
    """A model that predicts EOS everywhere."""

    def __init__(self, inner, eos):
        self._inner, self._eos = inner, eos

    def __getattr__(self, name):
        return getattr(self._inner, name)

    @property
    def head(self):
        import torch

        head = self._inner.head
        weight = torch.zeros_like(head.weight)
        weight[self._eos] = 1.0
        return replace(head, weight=weight)

    def __call__(self, batch, store):
        out = self._inner(batch, store)
        return replace(out, hidden=out.hidden.abs())


def test_stream_is_sufficient(tiny):
    events = list(tiny.stream(PROMPTS, max_tokens=8))
    canvases = fold(events)
    answers = tiny.generate(PROMPTS, max_tokens=8)
    assert [canvases[str(i)] for i in range(3)] == [g.canvas for g in answers]
    assert {type(e) for e in events} >= {Accepted, Stepped, Finished}


def test_closing_the_stream_cancels(tiny, monkeypatch):
    engines = []
    monkeypatch.setattr("unmask.pipeline.model.Engine", lambda d, s: engines.append(Engine(d, s)) or engines[-1])
    events = tiny.stream(PROMPTS * 4, max_tokens=16)
    while not isinstance(next(events), Stepped):
        pass
    assert not engines[0].idle
    events.close()
    rest = engines[0].step()
    assert engines[0].idle
    assert {e.reason for e in rest} == {"cancelled"}


def test_sinks_see_every_event_and_are_closed(tiny):
    class Sink:
        def __init__(self):
            self.events, self.closed = [], False

        def __call__(self, event):
            self.events.append(event)

        def close(self):
            self.closed = True

    sink = Sink()
    tiny.generate("x", max_tokens=4, sinks=[sink])
    assert sink.closed
    assert isinstance(sink.events[-1], Finished)


def test_a_failed_request_is_an_error(tiny):
    prepared = tiny.prepare("x", max_tokens=4)
    collect = tiny.collector(prepared)
    with pytest.raises(unmask.RunError, match="broken"):
        collect(Failed("0", "broken"))


def test_the_default_length_is_cut_to_the_room(tiny):
    found = tiny.generate("Why?")
    assert len(found.canvas.ids) == MAX_LEN
    assert found.settings["gen_length"] == f"{MAX_LEN - found.prompt_tokens} (default)"


def test_a_model_without_tokenizer_takes_ids(tiny_dirs, tmp_path):
    import shutil

    for path in tiny_dirs["llada"].iterdir():
        if "token" not in path.name:
            shutil.copy(path, tmp_path / path.name)
    model = unmask.load(tmp_path, dtype="fp32", device="cpu")
    assert model.codec is None
    found = model.generate([1, 2, 3], max_tokens=4)
    assert found.text == ""
    assert len(found.ids) == 4
    for given in ({"stop": "x"}, {"constraints": "1:x"}, {"template": "[[3]]"}):
        with pytest.raises(unmask.InputError, match="tokenizer"):
            model.generate([1, 2, 3], max_tokens=3, **given)
    with pytest.raises(unmask.InputError, match="tokenizer"):
        model.generate("text", max_tokens=4)


def test_the_front_door(tiny, tiny_dirs):
    assert unmask.generate("x", model=tiny, max_tokens=4).text == tiny.generate("x", max_tokens=4).text
    assert unmask.generate("x", model=tiny_dirs["llada"], max_tokens=4, seed=1).finish_reason in ("stop", "length")
    assert tiny.request("x", max_tokens=4, id="mine").id == "mine"
    assert isinstance(tiny.traits, Traits)
    assert isinstance(tiny.traits.attention, Full)
