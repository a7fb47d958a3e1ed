import pytest

import unmask
from unmask.core.events import Stepped


def user(text):
    return {"role": "user", "content": text}


def test_the_default_rule_templates_every_message_anew(tiny):
    session = unmask.ChatSession(tiny, system="Be brief.")
    first = session.ask("hi", max_tokens=6)
    second = session.ask("and you?", max_tokens=6)
    messages = [
        {"role": "system", "content": "Be brief."},
        user("hi"),
        {"role": "assistant", "content": first.text},
        user("and you?"),
    ]
    ids = tiny.codec.encode_chat(messages)
    assert second.canvas.ids[: second.prompt_tokens] == ids
    assert session.messages == [*messages[1:], {"role": "assistant", "content": second.text}]
    session.reset()
    assert session.ask("hi", max_tokens=6).text == first.text


def test_the_published_rule_appends_to_running_ids(tiny):
    session = unmask.ChatSession(tiny, history_rule="llada")
    codec, eos = tiny.codec, tiny.traits.eos_ids[0]
    first = session.ask("hi <|endoftext|> there", max_tokens=6)
    canvas = codec.encode_chat([user("hi <|endoftext|> there")]) + list(first.canvas.ids[first.prompt_tokens :])
    assert first.canvas.ids == canvas
    assert session.ids == [t for t in canvas if t != eos]
    assert eos in canvas
    assert first.text is not None
    assert session.last.text == codec.decode(canvas[first.prompt_tokens :])
    second = session.ask("again", max_tokens=6)
    new = codec.encode_chat([user("again")])
    assert new[0] == codec.token_id("<|startoftext|>")
    expected = [t for t in canvas if t != eos] + new[1:]
    assert second.canvas.ids[: second.prompt_tokens] == expected


def test_the_published_rule_with_the_published_profile(tiny):
    session = unmask.ChatSession(tiny, history_rule="llada")
    answer = session.ask("hi", profile="llada", gen_length=8, block_length=4, steps=8)
    assert answer.nfe == 8
    assert session.ids


def test_a_closed_turn_leaves_no_trace(tiny):
    session = unmask.ChatSession(tiny)
    before = session.ask("hi", max_tokens=6)
    messages = list(session.messages)
    events = session.stream("more", max_tokens=16)
    while not isinstance(next(events), Stepped):
        pass
    events.close()
    assert session.messages == messages
    assert session.last is before


@pytest.mark.parametrize("rule", ["default", "llada"])
def test_too_long_a_history_is_refused_with_numbers(tiny, rule):
    session = unmask.ChatSession(tiny, history_rule=rule)
    room = 128 - 16 - 20
    while (used := (session.last.prompt_tokens + 40) if session.last else 0) < room:
        session.ask("hello", max_tokens=16)
    turns = len(session.messages)
    with pytest.raises(unmask.InputError, match="at most 128 tokens"):
        session.ask("hello " * used, max_tokens=16)
    assert len(session.messages) == turns


def test_refusals(tiny):
    with pytest.raises(unmask.InputError, match="history rule"):
        unmask.ChatSession(tiny, history_rule="other")
    session = unmask.ChatSession(tiny)
    for bad in ("", "  "):
        with pytest.raises(unmask.InputError, match="empty"):
            session.stream(bad)
    assert session.messages == []
