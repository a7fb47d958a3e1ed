"""The light path reads a directory exactly as transformers' AutoTokenizer does (both majors)."""

import pytest
import tiny_tokenizers

from unmask.core.errors import CheckpointError
from unmask.text.codec import Codec

pytestmark = pytest.mark.slow
CHAT = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "  Why? <|mdm_mask|>\n"},
    {"role": "assistant", "content": "x"},
    {"role": "user", "content": "go"},
]


@pytest.fixture(scope="module")
def auto():
    from transformers import AutoTokenizer

    return lambda path: AutoTokenizer.from_pretrained(str(path), local_files_only=True)


@pytest.mark.parametrize("kind", ["llada", "qwen2", "metaspace"])
def test_ids_text_and_chats_are_equal(auto, tmp_path, kind):
    if kind == "qwen2":
        tiny_tokenizers.dream_dir(tmp_path, "Qwen2Tokenizer")
    else:
        getattr(tiny_tokenizers, f"{kind}_dir")(tmp_path)
    ours, theirs = Codec.from_dir(tmp_path), auto(tmp_path)
    for text in tiny_tokenizers.TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        for skip in (True, False):
            expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip_special=skip) == expected
    assert set(theirs.all_special_ids) <= ours.special_ids
    if not ours.has_template:
        return
    for chat in (CHAT, CHAT[1:2]):
        assert ours.render_chat(chat) == theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        found = theirs.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=True)
        assert ours.encode_chat(chat) == found["input_ids"]


def test_dream_is_read_as_qwen2(codecs, tmp_path):
    qwen2 = Codec.from_dir(tiny_tokenizers.dream_dir(tmp_path, "Qwen2Tokenizer"))
    assert all(codecs["dream"].encode(t) == qwen2.encode(t) for t in tiny_tokenizers.TEXTS)


def test_other_classes_go_through_transformers(auto, tmp_path):
    tiny_tokenizers.dream_dir(tmp_path, "GPT2Tokenizer")
    ours, theirs = Codec.from_dir(tmp_path), auto(tmp_path)
    for text in tiny_tokenizers.TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


def test_remote_code_is_refused(tmp_path):
    path = tiny_tokenizers.dream_dir(tmp_path) / "tokenizer_config.json"
    path.write_text(
        path.read_text()
        .replace('"DreamTokenizer"', '"FooTokenizer"')
        .replace("tokenization_dream.", "tokenization_foo.")
    )
    (tmp_path / "tokenization_foo.py").write_text("raise SystemExit('remote code ran')\n")
    with pytest.raises(CheckpointError, match="remote code"):
        Codec.from_dir(tmp_path)
