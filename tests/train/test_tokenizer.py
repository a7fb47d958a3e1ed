import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.core.errors import ConfigError
from unmask.text.codec import Codec
from unmask.train.export import tokenizer_files
from unmask.train.tokenizer import ASSISTANT, EOS, MASK, USER, train_tokenizer


def test_any_text_comes_back_unchanged(codec):
    @settings(max_examples=200, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def check(text):
        assert codec.decode(codec.encode(text), skip_special=False) == text

    check()


def test_digits_are_single_and_words_take_their_space_along(codec):
    assert [codec.piece(i) for i in codec.encode(" Tom has 165 apples")] == [" Tom", " has", " 1", "6", "5", " apples"]


def test_special_tokens_have_the_first_ids(codec):
    assert (codec.token_id(EOS), codec.token_id(MASK)) == (0, 1)


def test_chat_template_writes_the_frame_of_the_training_data(codec):
    ids = codec.encode_chat([{"role": "user", "content": "Copy: a b"}])
    assert ids == [codec.token_id(USER), *codec.encode("Copy: a b"), codec.token_id(ASSISTANT)]
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "hu"},
    ]
    assert codec.render_chat(turns) == "<|user|>hi<|assistant|>ho<|eos|><|user|>hu<|assistant|>"


def test_transformers_reads_it(tokenizer_dir, codec):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tokenizer_dir)
    messages = [{"role": "user", "content": "Sort: 3 1 2"}]
    got = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert list(got) == codec.encode_chat(messages)
    assert theirs.pad_token_id == theirs.eos_token_id == 0


def test_same_texts_same_tokenizer(tmp_path):
    texts = ["the cat sat", "on the mat 12", "the dog"] * 20
    for name in "ab":
        train_tokenizer(texts, 300, tmp_path / name)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()


def test_files_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("banana banana banana " * 50)
    found = train_tokenizer([tmp_path / "a.txt"], 300, tmp_path / "out", max_length=77)
    assert found.token_to_id("Ġbanana") is not None
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text())["model_max_length"] == 77
    assert Codec.from_dir(tmp_path / "out").has_template


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no file"), (b"", "is empty"), (b"\n \n", "is empty"), (b"ab\xff\xfe", "not UTF-8")]
)
def test_bad_files_are_refused_and_nothing_is_written(tmp_path, content, words):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=words):
        train_tokenizer([path], 300, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_vocabulary_below_the_bytes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="261"):
        train_tokenizer(["a"], 260, tmp_path)


def test_a_full_disk_leaves_no_half_tokenizer(tmp_path, monkeypatch):
    written = []

    def full(path, text):
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        path.write_text(text)

    monkeypatch.setattr("unmask.train.tokenizer.write_text", full)
    with pytest.raises(OSError, match="No space"):
        train_tokenizer(["some text"], 261, tmp_path / "new")
    assert written
    assert list(tmp_path.iterdir()) == []


def test_a_card_does_not_travel_with_a_tokenizer(tmp_path):
    for name in ("tokenizer.json", "chat_template.jinja", "README.md", "loss.svg", "scores.json", "unmask.json"):
        (tmp_path / name).write_text("x")
    (tmp_path / "model.safetensors").write_text("x")
    assert set(tokenizer_files(tmp_path)) == {"tokenizer.json", "chat_template.jinja"}
