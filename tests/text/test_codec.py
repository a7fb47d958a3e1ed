import json
import subprocess
import sys
import unicodedata

import pytest
import tiny_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.core.errors import CheckpointError, InputError, RequestError
from unmask.text.codec import Codec

USER = [{"role": "user", "content": "  Why is the sky blue? "}]


@pytest.mark.parametrize("text", tiny_tokenizers.TEXTS)
def test_encoding_adds_nothing_and_comes_back(codecs, text):
    assert codecs["llada"].decode(codecs["llada"].encode(text), skip_special=False) == text
    assert codecs["dream"].decode(codecs["dream"].encode(text), skip_special=False) == unicodedata.normalize(
        "NFC", text
    )


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_comes_back(codec, text):
    assert codec.decode(codec.encode(text), skip_special=False) == text


def test_special_tokens_in_a_text_are_read_and_skipped(codec):
    ids = codec.encode("a<|mdm_mask|>b")
    assert codec.token_id("<|mdm_mask|>") in ids
    assert codec.decode(ids) == "ab"
    assert codec.special_ids == {codec.token_id(t) for t in tiny_tokenizers.LLADA_SPECIALS}
    assert codec.named("bos_token") == codec.token_id("<|startoftext|>")
    assert codec.named("cls_token") is None


def test_dream_tokens_get_the_ids_of_the_config(codecs, tokenizer_dirs):
    config = json.loads((tokenizer_dirs["dream"] / "tokenizer_config.json").read_text())
    for i, entry in config["added_tokens_decoder"].items():
        assert codecs["dream"].token_id(entry["content"]) == int(i)
    tool = codecs["dream"].token_id("<tool_call>")
    assert tool not in codecs["dream"].special_ids
    assert codecs["dream"].decode([tool]) == "<tool_call>"


def test_llada_frame_of_one_turn(codec):
    ids = codec.encode_chat(USER)
    text = codec.decode(ids, skip_special=False)
    assert text == (
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nWhy is the sky blue?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert ids[0] == codec.token_id("<|startoftext|>")


def test_pieces(codecs):
    llada, meta = codecs["llada"], codecs["metaspace"]
    assert llada.piece(llada.token_id("<|mdm_mask|>")) == "<|mdm_mask|>"
    assert llada.piece(llada.encode(" the")[0]).startswith(" ")
    assert [meta.piece(i) for i in meta.encode("the cat")] == [" the", " cat"]
    assert llada.piece(llada.encode("🦊")[0]) == "\ufffd"
    assert llada.piece(10**6) == ""


def test_broken_unicode_is_refused(codec):
    with pytest.raises(RequestError, match="valid Unicode"):
        codec.encode("caf\udce9")


def test_no_tokenizer_names_the_directory(tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path.name)) as caught:
        Codec.from_dir(tmp_path)
    assert "tokenizer.json" in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", '{"version": "1.0", "model"'),
        ("tokenizer.json", '{"version": "1.0"}'),
        ("tokenizer.json", "[]"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": 1}}'),
        ("tokenizer_config.json", '{"chat_template": [{"nome": "default"}]}'),
        ("chat_template.jinja", b"\xff\xfe"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content):
    path = tiny_tokenizers.llada_dir(tmp_path) / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=name):
        Codec.from_dir(tmp_path)


def test_damaged_vocabulary_is_named(tmp_path):
    (tiny_tokenizers.dream_dir(tmp_path) / "merges.txt").write_text("#version: 0.2\nq q q q\n")
    with pytest.raises(CheckpointError, match="vocab"):
        Codec.from_dir(tmp_path)


def test_an_id_that_does_not_fit_the_config_is_refused(tmp_path):
    tiny_tokenizers.dream_dir(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["added_tokens_decoder"]["9999"] = {"content": "<|late|>", "special": True}
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="id 9999"):
        Codec.from_dir(tmp_path)


def test_template_places(tmp_path):
    tiny_tokenizers.llada_dir(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    path.write_text(json.dumps(config))
    assert Codec.from_dir(tmp_path).render_chat(USER) == "D"
    (tmp_path / "chat_template.jinja").write_text("F{{ messages[0].content | trim }}")
    assert Codec.from_dir(tmp_path).render_chat(USER) == "FWhy is the sky blue?"
    (tmp_path / "chat_template.jinja").unlink()
    del config["chat_template"]
    path.write_text(json.dumps(config))
    bare = Codec.from_dir(tmp_path)
    assert not bare.has_template
    with pytest.raises(InputError, match="chat template"):
        bare.encode_chat(USER)


def test_no_heavy_import(tokenizer_dirs):
    code = (
        "import sys; from unmask.text.codec import Codec; "
        f"[Codec.from_dir(d) for d in {[str(p) for p in tokenizer_dirs.values()]!r}]; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
