import pytest

from unmask.core.errors import RequestError
from unmask.text.stop import StopStrings


@pytest.mark.parametrize("kind", ["llada", "metaspace"])
@pytest.mark.parametrize(
    ("text", "stops", "left"),
    [
        ("the cat sat on", ["sat"], "the cat "),
        ("the cat sat on", ["t s"], "the ca"),
        ("the cat sat on", ["on", "cat"], "the "),
        ("the cat", ["dog"], None),
        ("the", ["the"], ""),
    ],
)
def test_text_is_cut_exactly_before(codecs, kind, text, stops, left):
    codec, ids = codecs[kind], codecs[kind].encode(text)
    stop = StopStrings(codec, stops)
    end = stop(ids)
    if left is None:
        assert end is None
        assert stop.cut(text) == text
        assert stop.visible(ids) == len(ids)
        return
    assert stop.cut(codec.decode(ids[:end])) == left
    assert all(stop(ids[:n]) is None for n in range(end))
    shown = stop.visible(ids[:end])
    assert codec.decode(ids[:shown]).startswith(left)
    assert shown == 0 or len(codec.decode(ids[: shown - 1])) < len(left)


def test_growing_prefix_gives_one_answer(codec):
    ids = codec.encode("one two three four")
    stop = StopStrings(codec, ["three"])
    ends = {stop(ids[:n]) for n in range(len(ids) + 1)} - {None}
    assert len(ends) == 1


def test_stop_tokens(codec):
    eot = codec.token_id("<|eot_id|>")
    ids = [*codec.encode("the fox"), eot, *codec.encode(" dog")]
    assert StopStrings(codec, ["<|eot_id|>"])(ids) == ids.index(eot)
    assert StopStrings(codec, ids=[eot])(ids) == ids.index(eot)
    assert StopStrings(codec, ids=[eot], floor=len(ids))(ids) is None
    assert StopStrings(codec, ["dog"], ids=[eot])(ids) == ids.index(eot)
    assert StopStrings(codec, ["fox"], ids=[eot])(ids) <= ids.index(eot)


@pytest.mark.parametrize("bad", ["", 3, None])
def test_bad_stop_strings(codec, bad):
    with pytest.raises(RequestError, match="stop string"):
        StopStrings(codec, [bad])
