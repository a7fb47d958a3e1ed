import re
from pathlib import Path

import pytest

from unmask.core.errors import ConfigError
from unmask.train.adapt import Start, recipe_of
from unmask.train.optim import OptimConfig, lr_factor
from unmask.train.recipe import ModelConfig, load_recipe, read_raw
from unmask.train.trainer import Trainer

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_every_recipe_parses_and_says_its_claim(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# Claim: ")
    assert f"recipes/{path.name}" in first
    assert re.search("`unmask (train|adapt) ", first)
    raw = read_raw(path)
    recipe = load_recipe(path) if "model" in raw else recipe_of(raw, Start(Path("parent"), 0, "bf16"))
    assert recipe.run.steps > 0


def test_overrides_win(recipe_file):
    recipe = load_recipe(recipe_file, ["optim.lr=3e-3", "run.steps=9", "objective.eos_padding=false", "seed=4"])
    assert (recipe.optim.lr, recipe.run.steps, recipe.objective.eos_padding, recipe.seed) == (0.003, 9, False, 4)


BAD = [
    ("optim.lrr=1", "unknown key optim.lrr"),
    ("optim.lr=fast", "optim.lr has the wrong type"),
    ("optim.lr=-1", "optim.lr is out of range"),
    ("optim.lr=.nan", "optim.lr has the wrong type"),
    ("optim.lr=.inf", "optim.lr has the wrong type"),
    ("optim.lr=inf", "optim.lr has the wrong type"),
    ("model.norm_eps=-1", "model.norm_eps is out of range"),
    ("model.rope_theta=0", "model.rope_theta is out of range"),
    ("model.init_std=-1", "model.init_std is out of range"),
    ("run.threads=-1", "run.threads is out of range"),
    ("seed=-1", "seed is out of range"),
    ("seed=99999999999999999999", "seed is out of range"),
    ("name=../elsewhere", "a plain file name"),
    ("tokenizer={samples: 0}", "tokenizer.samples is out of range"),
    ("tokenizer={vocab_size: 3}", "tokenizer.vocab_size is out of range"),
    ("optim.schedule=step", "optim.schedule has an unknown value"),
    ("optim.betas=[0.9]", "optim.betas has 1 entries"),
    ("run.steps=0", "run.steps is out of range"),
    ("run.steps=1.5", "run.steps has the wrong type"),
    ("run.steps=true", "run.steps has the wrong type"),
    ("run.ema=1", "run.ema is out of range"),
    ("model.dim=33", "does not split"),
    ("model.kv_heads=3", "kv_heads must divide"),
    ("objective.kind=other", "objective.kind is unknown"),
    ("objective.noise.eps=2", "noise.eps is out of range"),
    ("data.kind=csv", "data.kind is unknown"),
    ("data=5", "data is not a mapping"),
    ("name.first=x", "name is not a section"),
    ("validate={every: 5}", "nothing to do"),
    ("nonsense", "section.key=value"),
    ("nosuch.key=1", "unknown key nosuch"),
    ("optim.lr=[", "a YAML value"),
]


@pytest.mark.parametrize(("override", "words"), BAD, ids=[o for o, _ in BAD])
def test_bad_values_are_refused_by_name(recipe_file, override, words):
    with pytest.raises(ConfigError) as error:
        load_recipe(recipe_file, [override])
    assert words in f"{error.value} {error.value.remedy}"


def test_near_names_are_offered(recipe_file):
    with pytest.raises(ConfigError) as error:
        load_recipe(recipe_file, ["optim.warmpu=1"])
    assert "warmup" in error.value.remedy


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"a: [", "not valid YAML"),
        (b"- 1\n", "not a recipe"),
        (b"\xff", "not UTF-8"),
        (b"name: x\n", "missing"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, words):
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        load_recipe(path)
    with pytest.raises(ConfigError, match="no file"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "override",
    [
        "data.source=nowhere:x",
        "data={kind: text, source: {kind: files, paths: [no/such/file.txt]}}",
        "validate={data: {kind: text, source: {kind: files, paths: [none.txt]}}}",
        "validate={metric: nowhere:x}",
        "run.device=teapot",
    ],
)
def test_a_run_that_cannot_begin_writes_nothing(recipe_file, tmp_path, override):
    from unmask.core.errors import InputError

    with pytest.raises(InputError):
        Trainer(load_recipe(recipe_file, [override]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_wsd_schedule():
    cfg = OptimConfig(warmup=10, schedule="wsd", decay=0.5, floor=0.1)
    factors = [lr_factor(cfg, s, 100) for s in range(100)]
    assert factors[0] == 0.1
    assert factors[9:51] == [1.0] * 42
    assert factors[75] == pytest.approx(0.55)
    assert factors[99] == pytest.approx(0.1 + 0.9 * 0.02)


def test_cosine_and_constant_schedules():
    cosine = OptimConfig(warmup=0, schedule="cosine")
    assert lr_factor(cosine, 0, 10) == 1.0
    assert lr_factor(cosine, 5, 10) == pytest.approx(0.5)
    assert lr_factor(OptimConfig(warmup=4, schedule="constant"), 1, 10) == 0.5
    assert lr_factor(OptimConfig(warmup=4, schedule="constant"), 9, 10) == 1.0


def test_the_vocabulary_must_hold_the_tokenizer():
    with pytest.raises(ConfigError, match="vocab_size is too small"):
        ModelConfig(32, 1, 2, 32, vocab_size=10).transformer(600)
    assert ModelConfig(32, 1, 2, 32).transformer(600).vocab_size == 640
