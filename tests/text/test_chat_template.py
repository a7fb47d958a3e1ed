import pytest

from unmask.core.errors import CheckpointError, RequestError
from unmask.text.chat_template import render

USER = [{"role": "user", "content": "hi"}]


def test_blocks_are_trimmed_as_transformers_does():
    source = "{% for m in messages %}\n    {% if m.role == 'user' %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}"
    assert render(source, USER, {}) == "hi\n"


def test_what_templates_use():
    source = "{{ bos_token }}{{ messages | tojson }}{{ tools }}{% generation %}x{% endgeneration %}"
    source += "{% for i in [1, 2] %}{% break %}{% endfor %}"
    assert (
        render(source, [{"role": "user", "content": "<é>"}], {"bos_token": "B"})
        == 'B[{"role": "user", "content": "<é>"}]Nonex'
    )
    assert len(render("{{ strftime_now('%Y') }}", USER, {})) == 4


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[9].content.x }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
    ],
)
def test_a_refusal_is_one_error(source):
    with pytest.raises(RequestError, match="chat template refused"):
        render(source, USER, {})


@pytest.mark.parametrize(
    "source",
    ["{{ messages.append(1) }}", "{{ ''.__class__.__mro__ }}", "{{ messages.__class__.__base__.__subclasses__() }}"],
)
def test_the_sandbox_holds(source):
    with pytest.raises(RequestError):
        render(source, USER, {})


def test_a_broken_template_is_the_checkpoints_fault():
    with pytest.raises(CheckpointError, match="line 2"):
        render("{% if x %}\n{% endfor %}", USER, {})


@pytest.mark.parametrize(
    "messages", [[], [{"role": "user"}], ["hi"], [{"role": "user", "content": 3}], [{"content": "x"}]]
)
def test_malformed_messages(messages):
    with pytest.raises(RequestError, match="role"):
        render("x", messages, {})
