import pytest

from unmask.core.errors import RequestError
from unmask.text.template import fill, parse


def test_parts():
    assert parse("The [[4]] sat on the [[3]].") == ["The ", 4, " sat on the ", 3, "."]
    assert parse("[[2]]") == [2]
    assert parse("[[1]][[ 2 ]]") == [1, 2]
    assert parse(r"a \[[4]] b[[1]]\[[") == ["a [[4]] b", 1, "[["]
    assert parse("x[0] = y[[2]]]") == ["x[0] = y", 2, "]"]


def test_ids(codec):
    ids = fill("The [[4]] sat.", codec)
    assert ids == [*codec.encode("The "), None, None, None, None, *codec.encode(" sat.")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no hole", "without holes"),
        ("", "without holes"),
        (r"\[[4]]", "without holes"),
        ("a [[4", "not closed"),
        ("a [[4] b", "not closed"),
        ("a [[]]", "nothing"),
        ("a [[0]]", "0"),
        ("a [[-1]]", "-1"),
        ("a [[x]]", "x"),
        ("a [[1.5]]", "1.5"),
        ("a [[9999999]]", "9999999"),
    ],
)
def test_bad_templates(text, says):
    with pytest.raises(RequestError, match=says):
        parse(text)
