"""How answers are read: property tests of the extraction rules, and cases by hand."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.evals.tasks import gsm8k, math_answer, mbpp
from unmask.evals.tasks.infilling import edges

QUICK = settings(max_examples=60, deadline=None, derandomize=True)
NO_NUMBER = st.text(st.characters(exclude_characters="0123456789$.,#"), max_size=40)
NUMBERS = st.integers(-(10**9), 10**9)
TAILS = st.sampled_from(["", ".", " ", "\n", " dollars", "!", "。"])


def shown(number: int, dollars: bool, commas: bool) -> str:
    """A number as people write it: -$1,234 is not among these, lm-eval does not read it as one."""
    text = f"{abs(number):,}" if commas else str(abs(number))
    return ("-" if number < 0 else "") + ("$" if dollars and number >= 0 else "") + text


@QUICK
@given(NO_NUMBER, NUMBERS, st.booleans(), TAILS)
def test_strict_reads_the_number_behind_the_marks(before: str, number: int, commas: bool, tail: str) -> None:
    text = f"{before}\n#### {shown(number, False, commas)}{tail}"
    assert gsm8k.same_number(gsm8k.strict(text), f"steps\n#### {number}") == 1.0
    assert gsm8k.same_number(gsm8k.strict(text), f"steps\n#### {number + 1}") == 0.0


@QUICK
@given(NO_NUMBER, NUMBERS, NUMBERS, st.booleans(), st.booleans(), TAILS)
def test_flexible_reads_the_last_number(
    before: str, first: int, number: int, dollars: bool, commas: bool, tail: str
) -> None:
    text = f"{before} {first} so {shown(number, dollars, commas)}{tail}"
    assert gsm8k.same_number(gsm8k.flexible(text), f"#### {number}") == 1.0


@QUICK
@given(st.lists(NUMBERS, min_size=2, max_size=5))
def test_strict_takes_the_first_of_several_marks_flexible_the_last_number(numbers: list[int]) -> None:
    text = "\n".join(f"#### {n}" for n in numbers)
    assert gsm8k.strict(text) == str(numbers[0]) and gsm8k.flexible(text) == str(numbers[-1])


@QUICK
@given(NO_NUMBER)
def test_no_number_is_none(text: str) -> None:
    assert gsm8k.strict(text) is None and gsm8k.flexible(text) is None
    assert gsm8k.same_number(gsm8k.flexible(text), "#### 3") == 0.0


@QUICK
@given(st.text(max_size=200))
def test_any_text_is_read_without_an_error(text: str) -> None:
    for found in (gsm8k.strict(text), gsm8k.flexible(text)):
        if found is not None:
            assert found in text and re.search(r"[$0-9.,]", found)
            assert not re.search("[,$]", gsm8k.normal(found))
    math_answer.final_answer(text)
    assert math_answer.string_match(text, text)


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("#### 18", "18", "18"),
        ("#### -5.", "-5.", "-5."),
        ("#### $18", None, "$18"),  # lm-eval's strict pattern has no dollar sign
        ("####18", None, "18"),  # nor one without the space
        ("It is 7 .", None, "7"),
        ("It is 70.", None, "70."),
        ("It is 3/4", None, "4"),
        ("٣ apples", None, None),  # other scripts' digits are no digits here
        ("7 ...", None, "..."),  # a published quirk: dots count as a number
        ("1,234,567.89 #### 2", "2", "2"),
        ("−5", None, "5"),  # the minus sign of typographers is not read
    ],
)
def test_readings_of_lm_eval(text: str, strict: str | None, flexible: str | None) -> None:
    assert (gsm8k.strict(text), gsm8k.flexible(text)) == (strict, flexible)


@pytest.mark.parametrize(
    ("found", "same"),
    [("1,234", True), ("$1,234", True), ("1234.", True), ("1234..", False), ("1234.0", False), ("#### 1234", True)],
)
def test_normalisation_is_lm_evals(found: str, same: bool) -> None:
    assert gsm8k.same_number(found, "so\n#### 1,234") == float(same)


# --- LaTeX ------------------------------------------------------------------------------------------------------------

BALANCED = st.recursive(
    st.text(st.characters(exclude_characters="{}\\"), max_size=6),
    lambda inner: st.tuples(inner, inner).map(lambda t: f"{t[0]}{{{t[1]}}}"),
    max_leaves=6,
)


@QUICK
@given(BALANCED, BALANCED, st.text(st.characters(exclude_characters="\\{}"), max_size=20))
def test_boxed_is_the_last_whole_box(first: str, last: str, between: str) -> None:
    text = rf"\boxed{{{first}}}{between}\fbox {{{last}}}{between}"
    assert math_answer.boxed(text) == last
    assert math_answer.boxed(text + r"\boxed{open") == last


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("Final Answer: The final answer is $5$. I hope it is correct.", "$5$"),
        ("Final Answer: The final answer is $5$. I hope it is correct.\n\\boxed{6}", "$5$"),
        ("five", None),
        (r"\boxed{", None),
    ],
)
def test_final_answer_of_a_solution(text: str, answer: str | None) -> None:
    assert math_answer.final_answer(text) == answer


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("$5$", "5"),
        (r"\dfrac{1}{2}", r"\frac12"),
        (r"\frac 3 4", r"\frac{3}{4}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        ("1,234", r"1{,}234"),
        (r"1,\!234", "1234"),
        (r"\text{Evelyn}", "Evelyn"),
        (r"10\text{ cm}", "10"),
        (r"\$ 32.50", "32.50"),
        (r"50\%", "50"),
        (r"90^\circ", "90"),
        (".5", "0.5"),
        ("x = 4", "4"),
        (r"\sqrt 2", r"\sqrt{2}"),
    ],
)
def test_answers_that_are_the_same_as_strings(a: str, b: str) -> None:
    assert math_answer.string_match(a, b) and math_answer.string_match(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [("5", "6"), ("-5", "5"), (r"\frac{1}{2}", r"\frac{2}{1}"), ("1,2", "12"), ("(1,2)", "[1,2]"), ("2^{10}", "2^1")],
)
def test_answers_that_differ(a: str, b: str) -> None:
    assert not math_answer.string_match(a, b)


@QUICK
@given(st.integers(-(10**7), 10**7))
def test_grouping_commas_change_nothing(number: int) -> None:
    assert math_answer.string_match(f"{number:,}", str(number))
    assert not math_answer.string_match(f"{number:,}", str(number + 1))


@pytest.mark.parametrize("number", [Decimal("-7.25"), Decimal("1000")])
def test_math_verify_agrees_with_itself(number: Decimal) -> None:
    pytest.importorskip("math_verify", reason="math-verify (extra `eval`) is not installed")
    assert math_answer.verified(rf"so \boxed{{{number}}}", rf"\boxed{{{number}}}")
    assert not math_answer.verified(rf"so \boxed{{{number}}}", rf"\boxed{{{number + 1}}}")
    assert not math_answer.verified("nothing", rf"\boxed{{{number}}}")


# --- code and spans ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("Sure.\n```\nx = 1\n```\n```python\ny\n```", "x = 1\n"),
        ("```py\nx = 1", "x = 1"),
        ("x = 1", "x = 1"),
    ],
)
def test_fenced_code(text: str, code: str) -> None:
    assert mbpp.fenced(text) == code


@QUICK
@given(st.text(max_size=30), st.text(max_size=30))
def test_edges_is_a_share_and_one_only_for_the_same(found: str, wanted: str) -> None:
    share = edges(found, wanted)
    assert 0 <= share <= 1 and (share == 1) == (found == wanted)
