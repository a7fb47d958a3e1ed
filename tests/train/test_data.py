import json

import pytest

from unmask.core.errors import ConfigError
from unmask.evals.tasks.synthetic import split_of, stream
from unmask.train.batch import Row, collate
from unmask.train.config import build
from unmask.train.data import GeneratorData, PairData, Stage, TextData
from unmask.train.records import Files, Hub, Shuffled


@pytest.fixture
def shards(tmp_path):
    for s in range(3):
        lines = [
            json.dumps({"text": f"shard {s} line {i}", "prompt": f"p{s}.{i}", "answer": f"a{i}"}) for i in range(20)
        ]
        (tmp_path / f"part-{s}.jsonl").write_text("\n".join(lines) + "\n")
    return Files((str(tmp_path / "part-*.jsonl"),))


def generator(**more):
    return GeneratorData("unmask.evals.tasks.synthetic:stream", (Stage(0, {"copy": 1.0, "sort": 1.0}),), 200, **more)


KINDS = {
    "generator": lambda files: generator(history_share=0.5, system_share=0.5, whole_share=0.5),
    "packed": lambda files: TextData(files, length=24, rows=3, window=7),
    "documents": lambda files: TextData(files, length=24, rows=3, packed=False, window=7),
    "pairs": lambda files: PairData(files, length=64, rows=3, window=7),
}


def opened(kind, files, codec):
    found = KINDS[kind](files).open(seed=3)
    found.bind(codec)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_stream_goes_on_exactly(kind, shards, codec):
    one = opened(kind, shards, codec)
    for _ in range(17):
        one.next()
    state = json.loads(json.dumps(one.state()))
    two = opened(kind, shards, codec)
    two.restore(state)
    for _ in range(30):
        a, b = one.next(), two.next()
        assert a.ids.tolist() == b.ids.tolist()
        assert a.scored.tolist() == b.scored.tolist()


@pytest.mark.parametrize(("kind", "count"), [("packed", 60), ("pairs", 120)])
def test_the_tokenizer_sees_local_texts_once(kind, count, shards):
    texts = list(KINDS[kind](shards).open(seed=3).texts())
    assert len(texts) == count


def test_every_record_comes_once_per_epoch_and_orders_differ(shards):
    records = Shuffled(shards.open(), seed=0, window=8)
    epochs = [[records.next()["text"] for _ in range(60)] for _ in range(3)]
    assert all(len(set(e)) == 60 for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_window_of_one_keeps_the_order_of_a_file(shards):
    records = Shuffled(shards.open(), seed=0, window=1)
    numbers = [int(records.next()["text"].split()[-1]) for _ in range(20)]
    assert numbers == list(range(20))


def test_packed_rows_are_full_and_lose_nothing(shards, codec):
    data = TextData(shards, length=24, rows=4, window=1)
    found = data.open(0)
    found.bind(codec)
    batch = found.next()
    assert batch.real.all()
    assert batch.scored.all()
    tokens = batch.ids.flatten().tolist()
    records = Shuffled(shards.open(), 0, 1)
    want = []
    while len(want) < len(tokens):
        want += [*codec.encode(records.next()["text"]), 0]
    assert tokens == want[: len(tokens)]


def test_pairs_are_padded_with_eos_that_counts(shards, codec):
    batch = opened("pairs", shards, codec).next()
    assert batch.real.all()  # published: padding up to the longest row is part of the canvas
    assert (batch.ids[batch.tail] == 0).all()
    single = PairData(shards, rows=3, pad_to_longest=False).open(3)
    single.bind(codec)
    assert not single.next().tail.any()


def test_generator_rows_are_chat_turns_with_every_tail(codec):
    found = generator().open(0)
    found.bind(codec)
    tails = set()
    for _ in range(40):
        batch = found.next()
        for i in range(batch.ids.shape[0]):
            n, start = int(batch.real[i].sum()), int(batch.scored[i].int().argmax())
            ids = batch.ids[i, :n].tolist()
            prompt = codec.decode(ids[1 : start - 1])
            assert ids[:start] == codec.encode_chat([{"role": "user", "content": prompt}])
            tails.add(int(batch.tail[i].sum()))
            assert ids[n - int(batch.tail[i].sum()) - 1] == 0
    assert {0, 3, 7} <= tails
    assert max(tails) > 100


def test_stages_change_the_mixture_at_their_step(codec):
    data = GeneratorData(
        "unmask.evals.tasks.synthetic:stream", (Stage(0, {"copy": 1.0}), Stage(3, {"sudoku": 1.0})), batch_tokens=100
    )
    found = data.open(0, per_step=2)
    found.bind(codec)
    texts = [codec.decode(found.next().ids[0].tolist()) for _ in range(10)]
    grids = [("/" in t or "\n" in t) for t in texts]
    assert grids == [False] * 6 + [True] * 4


def test_training_never_sees_the_test_side():
    import random

    mix = {"copy": 1.0, "reverse": 1, "sort": 1, "sudoku": 1, "one_step": 1, "two_step": 1, "three_step": 1, "story": 1}
    items = stream(random.Random(0), mix)
    assert all(split_of(next(items).key) == "train" for _ in range(3000))


def test_collate_marks_every_place():
    batch = collate([Row((5, 6, 0, 0, 0), 1, tail=2), Row((5, 6), 1, whole=True)], 0)
    assert batch.ids.tolist() == [[5, 6, 0, 0, 0], [5, 6, 0, 0, 0]]
    assert batch.real.tolist() == [[True] * 2 + [False] * 3, [True] * 5]
    assert batch.scored.tolist() == [[True] * 2 + [False] * 3, [False] + [True] * 4]
    assert batch.tail.tolist() == [[False] * 5, [False] * 3 + [True] * 2]
    assert batch.tokens == 7


BAD_FILES = [
    (None, "no file"),
    (b"", "is empty"),
    (b"\n\n", "is empty"),
    (b'{"text": "a"}\nnot json\n', "line 2 is not JSON"),
    (b'["a"]\n', "not a JSON object"),
    (b'{"text": "\xff"}\n', "not UTF-8"),
    (b'{"other": "a"}\n', "no field 'text'"),
    (b'{"text": 3}\n', "not text"),
]


@pytest.mark.parametrize(("content", "words"), BAD_FILES)
def test_bad_jsonl_is_refused_by_name(tmp_path, codec, content, words):
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_bytes(content)

    def read():
        found = TextData(Files((str(path),)), rows=1, length=8).open(0)
        found.bind(codec)
        found.next()

    with pytest.raises(ConfigError, match=words):
        read()


def test_text_files_split_at_blank_lines(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n\n\n")
    source = Files((str(tmp_path / "a.txt"),)).open()
    assert [r["text"] for r in source.read(0, 0)] == ["one\ntwo", "three"]
    assert [r["text"] for r in source.read(0, 1)] == ["three"]


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        Files((str(tmp_path),)).open()


def test_pairs_that_are_all_too_long_are_refused(shards, codec):
    found = PairData(shards, length=4).open(0)
    found.bind(codec)
    with pytest.raises(ConfigError, match=r"longer than data\.length"):
        found.next()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.at.all:x", "cannot find"),
        ("unmask.evals.tasks.synthetic:nothing", "cannot find"),
        ("json", "cannot find"),
    ],
)
def test_unknown_generators_are_refused(source, words):
    with pytest.raises(ConfigError, match=words):
        GeneratorData(source, (Stage(0, {"copy": 1.0}),)).open(0)


def test_unknown_tasks_are_refused():
    with pytest.raises(ConfigError, match="unknown task 'fly'"):
        GeneratorData("unmask.evals.tasks.synthetic:stream", (Stage(0, {"fly": 1.0}),)).open(0)


@pytest.mark.parametrize(
    "stages", [[], [{"start": 1, "mix": {"a": 1}}], [{"start": 0, "mix": {}}], [{"start": 0, "mix": {"a": -1}}]]
)
def test_bad_stages_are_refused(stages):
    with pytest.raises(ConfigError, match="stages"):
        build(GeneratorData, {"source": "a:b", "stages": stages}, "data")


def test_hub_datasets_are_streamed(tmp_path, shards, codec):
    pytest.importorskip("datasets")
    data = TextData(Hub(str(tmp_path)), length=24, rows=3, window=7)
    one = data.open(0)
    one.bind(codec)
    for _ in range(9):
        one.next()
    two = data.open(0)
    two.bind(codec)
    two.restore(json.loads(json.dumps(one.state())))
    assert one.next().ids.tolist() == two.next().ids.tolist()


def test_unknown_hub_datasets_are_refused(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(ConfigError, match="cannot open the dataset"):
        Hub(str(tmp_path / "none")).open()


def test_cuts_fall_behind_their_token(codec):
    stage = Stage(0, {"one_step": 1.0, "copy": 1.0}, cut_share=0.5)
    data = GeneratorData("unmask.evals.tasks.synthetic:stream", (stage,), 2000, cut_after=(" =",))
    found = data.open(0)
    found.bind(codec)
    batch, sign, cuts = found.next(), codec.encode(" =")[0], 0
    for ids, hidden, real in zip(batch.ids, batch.hidden, batch.real):
        if hidden.any():
            at, end = int(hidden.int().argmax()), int(real.sum())
            assert hidden[at:end].all()
            assert sign not in ids.tolist() or ids[at - 1] == sign
            cuts += 1
    assert 0.3 < cuts / len(batch.ids) < 0.7
