import pytest

from unmask.core.errors import RequestError
from unmask.text.constraints import parse, place


def test_parts():
    assert parse(" 3:apple, 7: two words ,0:a\\,b:c") == [(3, "apple"), (7, "two words"), (0, "a,b:c")]
    assert parse("") == parse("  ") == []


def test_words_take_a_leading_space_and_several_tokens(codec):
    ids = codec.encode(" scattering")
    placed = place("2:scattering", codec, 20)
    assert placed == {2 + i: t for i, t in enumerate(ids)}
    assert place({2: "scattering"}, codec, 20) == placed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("apple", "no colon"),
        ("x:apple", "position"),
        ("-1:apple", "position"),
        ("1.5:apple", "position"),
        (":apple", "position"),
        ("3:", "word"),
        ("3:  ", "word"),
        ("3:fox,,4:dog", "no colon"),
        ("3:fox,", "no colon"),
        ("32:fox", "positions 0 to 31"),
        ("31:scattering lazy", "positions 0 to 31"),
        ("3:fox,3:dog", "free position"),
        ("2:scattering scattering,3:dog", "free position"),
        ("٣:fox", "position"),
    ],
)
def test_bad_parts_are_refused(codec, text, says):
    with pytest.raises(RequestError, match=says):
        place(text, codec, 32)


@pytest.mark.parametrize("bad", [{-1: "a"}, {"1": "a"}, {1: ""}, {True: "a"}, {1: 2}])
def test_bad_mappings_are_refused(codec, bad):
    with pytest.raises(RequestError):
        place(bad, codec, 32)
