import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.text.detokenize import BROKEN, Detokenizer

SENTENCES = [
    "the cat sat",
    "naïve café — 你好 🦊🦊 end",
    "é",
    "a<|mdm_mask|> b<|endoftext|>",
    "<|endoftext|> the dog",
    "",
]


def pushed(codec, ids, step=1):
    detokenizer = Detokenizer(codec)
    parts = [detokenizer.push(ids[:n]) for n in range(0, len(ids) + 1, step)]
    return [*parts, detokenizer.push(ids), detokenizer.finish()]


@pytest.mark.parametrize("kind", ["llada", "dream", "metaspace"])
@pytest.mark.parametrize("text", SENTENCES)
@pytest.mark.parametrize("step", [1, 3])
def test_pieces_add_up(codecs, kind, text, step):
    codec = codecs[kind]
    ids = codec.encode(text)
    parts = pushed(codec, ids, step)
    assert "".join(parts) == codec.decode(ids)
    assert all(BROKEN not in p for p in parts)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_ids_add_up(codec, data):
    ids = data.draw(st.lists(st.integers(0, codec.size - 1), max_size=30))
    assert "".join(pushed(codec, ids)) == codec.decode(ids)


def test_half_a_character_waits(codec):
    ids = codec.encode("🦊")
    assert len(ids) > 1
    detokenizer = Detokenizer(codec)
    assert [detokenizer.push(ids[:n]) for n in range(1, len(ids) + 1)] == [""] * (len(ids) - 1) + ["🦊"]


def test_an_unfinished_character_ends_as_a_sign(codec):
    detokenizer = Detokenizer(codec)
    assert detokenizer.push(codec.encode("a🦊")[:-1]) == ""
    assert detokenizer.finish().startswith("a")
