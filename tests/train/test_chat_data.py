"""Conversations by the tokenizer's own template, packing, and documents that do not see each other."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import tiny_tokenizers
import torch

from unmask.core.errors import ConfigError
from unmask.text.codec import Codec
from unmask.train.batch import Batch, Row, collate
from unmask.train.chat import encode_at, encode_conversation
from unmask.train.config import build
from unmask.train.data import ChatData, GeneratorData, PairData, Stage, TextData
from unmask.train.forward import Net
from unmask.train.records import Files

TALK = [
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "Rayleigh scattering.\n\nIt's because of it."},
    {"role": "user", "content": "dog"},
    {"role": "assistant", "content": "The lazy dog"},
    {"role": "user", "content": "nobody answers this"},
]
CHATML_NO_END = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}" + (
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
FORGETFUL = "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.role + ': ' + m.content + '\n' }}" + (
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
SHOUTING = "{% for m in messages %}{{ m.role + ': ' + m.content | upper + '\n' }}{% endfor %}" + (
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def codec_with(path, template):
    tiny_tokenizers.dream_dir(path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return Codec.from_dir(path)


@pytest.fixture(params=["ours", "llada", "chatml"])
def any_codec(request, tmp_path, codec):
    if request.param == "ours":
        return codec
    make = {"llada": tiny_tokenizers.llada_dir, "chatml": tiny_tokenizers.dream_dir}[request.param]
    return Codec.from_dir(make(tmp_path / "tokenizer"))


@pytest.fixture
def talks(tmp_path):
    """Conversations of one and two turns, of very different lengths."""
    lines = []
    for i in range(30):
        turns = [{"role": "user", "content": f"copy {i}"}, {"role": "assistant", "content": "red " * (i % 7) + "blue"}]
        lines.append(json.dumps({"messages": turns * (1 + i % 2)}))
    (tmp_path / "talks.jsonl").write_text("\n".join(lines) + "\n")
    return Files((str(tmp_path / "talks.jsonl"),))


def opened(data, codec):
    stream = data.open(seed=5)
    stream.bind(codec)
    return stream


# --- one conversation -------------------------------------------------------------------------------------------------


def test_every_answer_with_its_end_is_scored_and_nothing_else(any_codec):
    found = encode_conversation(any_codec, TALK, any_codec.named("eos_token"))
    said = [any_codec.decode(found.ids[a:b]) for a, b in found.answers]
    assert said == [m["content"] for m in TALK if m["role"] == "assistant"]
    assert all(found.ids[b - 1] in any_codec.special_ids for _, b in found.answers)
    assert found.answers[-1][1] == len(found.ids)
    assert "nobody" not in any_codec.decode(found.ids)


def test_an_answer_follows_the_very_prompt_that_decoding_starts_from(any_codec):
    found = encode_conversation(any_codec, TALK, any_codec.named("eos_token"))
    for turn, (start, _) in zip((1, 3), found.answers, strict=True):
        assert list(found.ids[:start]) == any_codec.encode_chat(TALK[:turn])


def test_a_token_never_spans_the_place_where_the_answer_begins(tmp_path):
    codec = Codec.from_dir(tiny_tokenizers.dream_dir(tmp_path))
    codec._backend.add_tokens(["t\n\nNo"])  # a merge across the end of the header
    talk = [TALK[0], {"role": "assistant", "content": "\nNo"}]
    assert codec.encode("assistant\n\nNo") != codec.encode("assistant\n") + codec.encode("\nNo")
    found = encode_conversation(codec, talk, 0)
    (start, stop), *_ = found.answers
    assert list(found.ids[:start]) == codec.encode_chat(talk[:1])
    assert codec.decode(found.ids[start:stop]) == "\nNo"


def test_words_that_carry_their_space_are_cut_as_decoding_would(tmp_path):
    codec = Codec.from_dir(tiny_tokenizers.metaspace_dir(tmp_path / "plain"))
    template = "{% for m in messages %}{{ m.content }}{{ ' ' }}{% endfor %}"
    config = json.loads((tmp_path / "plain" / "tokenizer_config.json").read_text())
    (tmp_path / "plain" / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    codec = Codec.from_dir(tmp_path / "plain")
    talk = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on the mat"}]
    found = encode_conversation(codec, talk, 2)
    (start, stop), *_ = found.answers
    assert list(found.ids[:start]) == codec.encode_chat(talk[:1])
    assert codec.decode(found.ids[start : stop - 1]).strip() == "sat on the mat" and found.ids[stop - 1] == 2


def test_cuts_fall_between_tokens(codec):
    text = "the quick brown fox jumps over it"
    for cuts in ([3], [4, 9], [0, 1, 2, 17, len(text)]):
        ids, places = encode_at(codec, text, cuts)
        edges = [0, *places, len(ids)]
        pieces = [codec.decode(ids[a:b]) for a, b in pairwise(edges)]
        assert "".join(pieces) == text
        assert [len("".join(pieces[: i + 1])) for i in range(len(cuts))] == cuts


def test_a_template_without_an_end_of_turn_gets_one_eos_at_the_end(tmp_path):
    codec = codec_with(tmp_path, CHATML_NO_END)
    found = encode_conversation(codec, TALK, 7)
    assert found.ids[-1] == 7
    assert [codec.decode(found.ids[a:b], skip_special=False) for a, b in found.answers[:-1]] == [TALK[1]["content"]]
    assert found.answers[-1][1] == len(found.ids)


@pytest.mark.parametrize(
    ("template", "talk", "words"),
    [
        (FORGETFUL, TALK, "another text there"),
        (SHOUTING, TALK, "as it is"),
        (tiny_tokenizers.CHATML, TALK[:1], "role assistant"),
        (tiny_tokenizers.CHATML, TALK[1:], "assistant that begins"),
        ("{{ raise_exception('no ' + messages[0].role) }}", TALK, "no user"),
    ],
)
def test_what_a_template_hides_is_refused_with_the_record(tmp_path, template, talk, words):
    with pytest.raises(ConfigError, match=words) as caught:
        encode_conversation(codec_with(tmp_path, template), talk, 0)
    assert talk[0]["content"][:19] in str(caught.value)


# --- rows and windows -------------------------------------------------------------------------------------------------


def test_plain_rows_hold_one_conversation_each(talks, any_codec):
    batch = opened(ChatData(talks, length=100, rows=5), any_codec).next()
    assert (batch.documents.amax(1) == 0).all()
    assert not batch.pads.any()
    assert not (batch.scored & ~batch.real).any()
    for ids, scored in zip(batch.ids, batch.scored):
        answer = any_codec.decode(ids[scored].tolist())
        assert set(answer.replace("red", "").replace("blue", "").split()) == set() and "blue" in answer


def test_running_windows_are_full_and_lose_nothing(talks, codec):
    data = ChatData(talks, length=24, rows=4, packed=True, block=8, window=1)
    stream = opened(data, codec)
    batches = [stream.next() for _ in range(5)]
    assert all(b.real.all() for b in batches)
    flat = {name: torch.cat([getattr(b, name).flatten() for b in batches]) for name in ("ids", "pads", "scored")}
    ids, pads, scored = [], [], []
    records = talks.open().read(0, 0)
    while len(ids) < flat["ids"].numel():
        found = encode_conversation(codec, json.loads(json.dumps(next(records)))["messages"], 0)
        fill = -len(found.ids) % 8
        mine = [any(a <= i < b for a, b in found.answers) for i in range(len(found.ids) + fill)]
        ids, pads = [*ids, *found.ids, *[0] * fill], [*pads, *[False] * len(found.ids), *[True] * fill]
        scored += mine
    n = flat["ids"].numel()
    assert flat["ids"].tolist() == ids[:n]
    assert flat["pads"].tolist() == pads[:n]
    assert flat["scored"].tolist() == scored[:n]
    assert sum(b.tokens for b in batches) == n - sum(pads[:n])


def test_conversations_begin_on_the_grid_of_blocks(talks, codec):
    stream = opened(ChatData(talks, length=48, rows=4, packed=True, block=8), codec)
    for _ in range(6):
        documents = stream.next().documents
        steps = documents[:, 1:] != documents[:, :-1]
        assert steps.any()
        assert (((steps.nonzero()[:, 1] + 1) % 8) == 0).all()


def test_a_document_mask_keeps_conversations_whole(talks, codec):
    data = ChatData(talks, length=64, rows=3, packed=True, block=8, document_mask=True, window=30)
    stream, seen = opened(data, codec), []
    while len(seen) < 60:
        batch = stream.next()
        assert (batch.documents.amax(1) == 0).all()
        assert (batch.real.sum(1) % 8 == 0).all()
        seen += [tuple(ids[real & ~pads].tolist()) for ids, real, pads in zip(batch.ids, batch.real, batch.pads)]
    assert set(seen) == {encode_conversation(codec, r["messages"], 0).ids for r in talks.open().read(0, 0)}
    assert stream.left_out == 0


def test_the_filling_of_blocks_is_the_objectives_choice(talks, codec):
    batch = opened(ChatData(talks, length=48, rows=4, packed=True, block=16), codec).next()
    assert batch.pads.any() and not (batch.pads & batch.scored).any()
    filled = batch.with_pads(3)
    assert (filled.ids[batch.pads] == 3).all()
    assert torch.equal(filled.ids[~batch.pads], batch.ids[~batch.pads])
    bare = batch.without_pads()
    assert torch.equal(bare.real, batch.real & ~batch.pads) and bare.tokens == batch.tokens


def test_what_is_too_long_is_counted_and_only_too_long_is_refused(talks, codec):
    lengths = [len(encode_conversation(codec, r["messages"], 0).ids) for r in talks.open().read(0, 0)]
    limit = sorted(lengths)[14]
    stream = opened(ChatData(talks, length=limit, rows=1, window=1), codec)
    for _ in range(sum(n <= limit for n in lengths) + 1):
        batch = stream.next()
        assert batch.ids.shape[1] <= limit
    assert stream.left_out >= sum(n > limit for n in lengths)
    restored = opened(ChatData(talks, length=limit, rows=1, window=1), codec)
    restored.restore(stream.state())
    assert restored.left_out == stream.left_out
    with pytest.raises(ConfigError, match=r"longer than data\.length"):
        opened(ChatData(talks, length=4), codec).next()
    pairs = opened(PairData(talks, length=4), codec)
    with pytest.raises(ConfigError, match="no field"):
        pairs.next()


CHATS = {
    "rows": {},
    "running": {"packed": True, "block": 8},
    "masked": {"packed": True, "block": 4, "document_mask": True},
}


@pytest.mark.parametrize("kind", [*CHATS, "text"])
def test_a_restored_stream_goes_on_bit_equal(kind, talks, codec, tmp_path):
    if kind == "text":
        (tmp_path / "a.txt").write_text("\n\n".join(f"{'word ' * (i % 9)} {i}" for i in range(50)))
        data = TextData(Files((str(tmp_path / "a.txt"),)), length=16, rows=3, document_mask=True, window=9)
    else:
        data = ChatData(talks, length=80, rows=3, window=7, **CHATS[kind])
    one, two = opened(data, codec), opened(data, codec)
    for _ in range(13):
        one.next()
    two.restore(json.loads(json.dumps(one.state())))
    for _ in range(20):
        for a, b in zip(one.next()._all, two.next()._all, strict=True):
            assert torch.equal(a, b)
    assert one.state() == two.state()


def test_the_tokenizer_sees_every_turn_once(talks):
    assert len(list(ChatData(talks).open(0).texts())) == 15 * 2 + 15 * 4


def test_parquet_records_read_like_lines_of_json(talks, codec, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    records = list(talks.open().read(0, 0))
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "talks.parquet")
    source = Files((str(tmp_path / "talks.parquet"),))
    one, two = (opened(ChatData(s, length=200, rows=4), codec).next() for s in (talks, source))
    assert torch.equal(one.ids, two.ids) and torch.equal(one.scored, two.scored)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ConfigError, match="not a parquet file"):
        Files((str(tmp_path / "bad.parquet"),)).open()


BAD_TALKS = [
    ({"text": "x"}, "no field 'messages'"),
    ({"messages": []}, "no conversation"),
    ({"messages": "hello"}, "no conversation"),
    ({"messages": [{"role": "user"}]}, "no conversation"),
    ({"messages": [{"role": "user", "content": None}]}, "no conversation"),
]


@pytest.mark.parametrize(("record", "words"), BAD_TALKS)
def test_records_of_another_form_are_refused(tmp_path, codec, record, words):
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    stream = opened(ChatData(Files((str(tmp_path / "a.jsonl"),))), codec)
    with pytest.raises(ConfigError, match=words):
        stream.next()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block": 8}, "data.block has no effect"),
        ({"document_mask": True}, "data.document_mask has no effect"),
        ({"packed": True, "block": 7}, "multiple of data.block"),
        ({"rows": 0}, "data.rows"),
    ],
)
def test_options_without_effect_are_refused(talks, options, words):
    with pytest.raises(ConfigError, match=words):
        ChatData(talks, **options)
    raw = {"source": {"kind": "files", "paths": ["a.jsonl"]}, **options}
    with pytest.raises(ConfigError, match=words):
        build(ChatData, raw, "data")


def test_text_that_is_not_packed_has_no_document_mask(talks):
    with pytest.raises(ConfigError, match="document_mask has no effect"):
        TextData(talks, packed=False, document_mask=True)


def test_a_tokenizer_without_template_is_refused(talks, tmp_path):
    with pytest.raises(ConfigError, match="chat template"):
        opened(ChatData(talks), Codec.from_dir(tiny_tokenizers.metaspace_dir(tmp_path / "t")))


# --- documents --------------------------------------------------------------------------------------------------------


def test_packed_text_knows_its_documents(tmp_path, codec):
    texts = [f"{'word ' * (i % 5)}{i}" for i in range(40)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    batch = opened(TextData(Files((str(tmp_path / "a.txt"),)), length=32, rows=4), codec).next()
    ends = batch.ids == 0
    steps = batch.documents[:, 1:] - batch.documents[:, :-1]
    assert torch.equal(steps, ends[:, :-1].long())
    assert (batch.documents[:, 0] == 0).all() and batch.documents.max() > 1


def test_split_documents_are_the_same_tokens_in_rows_of_their_own():
    rows = [Row((1, 2, 3, 4, 5, 6), 0, documents=(2, 3, 1), pads=((4, 5),), answers=((1, 2), (3, 4))), Row((7, 8), 1)]
    batch = collate(rows, 0)
    assert batch.documents.tolist() == [[0, 0, -1, -1, -1, -1], [0, 0, 1, 1, 1, 2]]
    split = batch.split_documents()
    assert split.ids.tolist() == [[6, 0, 0], [7, 8, 0], [1, 2, 0], [3, 4, 5]]
    assert split.real.sum(1).tolist() == [1, 2, 2, 3]
    assert split.scored.tolist() == [[False] * 3, [False, True, False], [False, True, False], [False, True, False]]
    assert split.pads.tolist()[-1] == [False, False, True]
    assert split.documents.tolist() == [[0, -1, -1], [0, 0, -1], [0, 0, -1], [0, 0, 0]]
    assert split.tokens == batch.tokens == 7
    assert split.split_documents() is split


def test_a_document_computes_as_if_it_were_alone(tiny_model):
    rng = torch.Generator().manual_seed(0)
    ids = tuple(torch.randint(1, 50, (24,), generator=rng).tolist())
    batch = collate([Row(ids, 0, documents=(9, 15)), Row(ids[:7], 0)], 0)
    net, split = Net(tiny_model), batch.split_documents()
    got = net.hidden(split.ids, split.real, split.real)
    alone = []
    for part in (ids[:7], ids[:9], ids[9:]):
        row = torch.tensor([part])
        alone.append(net.hidden(row, torch.ones_like(row, dtype=torch.bool), torch.ones_like(row, dtype=torch.bool)))
    assert torch.allclose(got, torch.cat(alone), atol=1e-5)
    seen = net.hidden(batch.ids, batch.real, batch.real)
    assert not torch.allclose(seen[-24:], torch.cat(alone)[-24:], atol=1e-3)  # without the mask they do see each other


def test_a_batch_of_five_tensors_is_one_document_a_row():
    full = collate([Row((1, 2, 3), 1), Row((4,), 0)], 0)
    bare = Batch(full.ids, full.real, full.scored, full.tail, full.hidden)
    assert torch.equal(bare.documents, full.documents) and not bare.pads.any()
    assert replace(bare, ids=bare.ids + 1).documents is bare.documents


def test_documents_whose_padding_left_the_canvas_still_split():
    batch = collate([Row((1, 2, 9, 9, 3, 4), 0, documents=(4, 2), pads=((2, 4),))], 0).without_pads()
    assert batch.split_documents().ids.tolist() == [[1, 2], [3, 4]]
    assert batch.cut(4).documents.tolist() == [[0, 0, -1, -1]]


def test_generated_problems_without_tails_are_plain_rows(codec):
    stage = (Stage(0, {"copy": 1.0, "one_step": 1.0}),)
    data = GeneratorData("unmask.evals.tasks.synthetic:stream", stage, 600, gen_share=0.0, short_tail=0)
    for _ in range(3):
        batch = opened(data, codec).next()
        assert not batch.tail.any()
        ends = (batch.ids == 0) & batch.real
        assert (ends.sum(1) == 1).all()
        assert (batch.documents == batch.real.long() - 1).all()
