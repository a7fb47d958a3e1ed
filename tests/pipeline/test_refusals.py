"""Bad input: one error that says what was expected, what came, and nothing has run."""

import pytest
from tiny_checkpoints import MAX_LEN

import unmask
from unmask.core.errors import CheckpointError, ConfigError, RequestError, SpecError

BAD = [
    ("", {}, RequestError, "empty prompt"),
    ("  \n", {}, RequestError, "empty prompt"),
    ("", {"chat": False}, RequestError, "empty prompt"),
    ([], {}, RequestError, "empty list"),
    ([[]], {}, RequestError, "empty prompt"),
    (["ok", ""], {}, RequestError, "prompt 1: "),
    ([1, 10**6], {}, RequestError, "ids from 0 to"),
    ([1, -1], {}, RequestError, "ids from 0 to"),
    ([{"role": "user"}], {}, RequestError, "content"),
    ("caf\udce9", {}, RequestError, "valid Unicode"),
    ("x " * MAX_LEN, {}, RequestError, f"at most {MAX_LEN} tokens"),
    ("x", {"max_tokens": MAX_LEN}, RequestError, f"at most {MAX_LEN} tokens"),
    ("x", {"max_tokens": 0}, RequestError, "from 1"),
    ("x", {"max_tokens": -3}, RequestError, "from 1"),
    ("x", {"max_tokens": 2.5}, RequestError, "from 1"),
    ("x", {"gen_length": 0}, RequestError, "from 1"),
    ("x", {"max_tokens": 4, "gen_length": 8}, RequestError, "4 and 8"),
    ("x", {"seed": -1}, RequestError, "seed"),
    ("x", {"seed": 1 << 63}, RequestError, "seed"),
    ("x", {"samples": 0}, RequestError, "samples"),
    ("x", {"stop": [""]}, RequestError, "stop string"),
    ("x", {"constraints": "99:fox", "max_tokens": 8}, RequestError, "positions 0 to 7"),
    ("x", {"constraints": "one:fox"}, RequestError, "position"),
    ("x", {"constraints": "1:a", "template": "[[2]]"}, RequestError, "both"),
    ("x", {"template": "no hole"}, RequestError, "without holes"),
    ("x", {"template": "a [[3]]", "max_tokens": 50}, RequestError, "the template's own"),
    ("x", {"template": f"[[{MAX_LEN}]]"}, RequestError, "at most"),
    ("x", {"system": "s", "chat": False}, RequestError, "system"),
    ([{"role": "user", "content": "x"}], {"chat": False}, RequestError, "chat messages"),
    ("x", {"tempature": 1}, ConfigError, "temperature"),
    ("x", {"temperature": "hot"}, ConfigError, "a number"),
    ("x", {"temperature": float("nan")}, ConfigError, "a number"),
    ("x", {"temperature": -1.0}, ConfigError, "temperature"),
    ("x", {"top_p": 1.5, "temperature": 1.0}, ConfigError, "top-p"),
    ("x", {"steps": 0}, SpecError, "steps"),
    ("x", {"steps": "8"}, ConfigError, "an integer"),
    ("x", {"steps": True}, ConfigError, "an integer"),
    ("x", {"threshold": 7.0}, SpecError, "threshold"),
    ("x", {"policy": "thresold(0.9)"}, SpecError, "did you mean|threshold"),
    ("x", {"cache": "dual(refresh=x)"}, SpecError, "literal"),
    ("x", {"schedule": "blocks(0)"}, SpecError, ">= 1"),
    ("x", {"profile": "lada"}, SpecError, "profile"),
    ("x", {"profile": "llada", "gen_length": 16, "threshold": 0.5}, ConfigError, "threshold"),
    (None, {}, RequestError, "a list of them"),
    (5, {}, RequestError, "a list of them"),
    (b"abc", {}, RequestError, "bytes"),
    ({"role": "user", "content": "x"}, {}, RequestError, "a list of them"),
    ([None], {}, RequestError, "prompt 0"),
    ([1.5], {}, RequestError, "prompt 0"),
    ("x", {"stop": 5}, RequestError, "stop"),
    ("x", {"stop": None}, RequestError, "stop"),
    ("x", {"constraints": ["a"]}, RequestError, "constraints"),
    ("x", {"template": 5}, RequestError, "template"),
    ("x", {"chat": "no"}, RequestError, "True, False or None"),
    ("x", {"options": None}, RequestError, "DecodeOptions"),
    ("x", {"profile": 5}, RequestError, "profile"),
    ("x", {"temperature": 10**400}, ConfigError, "a number"),
    ("x", {"temperature": 1e-300}, ConfigError, "from 1e-06 to 100"),
    ("x", {"temperature": 1e300}, ConfigError, "from 1e-06 to 100"),
    ("x", {"cfg_scale": 1e30}, ConfigError, "cfg-scale"),
    ("x", {"guidance_scale": 1e30}, SpecError, "<= 1000"),
    ("x", {"steps": 10**30}, SpecError, "<= 1.04858e"),
    ("x", {"policy": "random(steps=99999999999)"}, SpecError, "steps"),
    ("x", {"block_length": 10**30}, SpecError, "length"),
    ("x", {"cache": "block"}, RequestError, "causal"),
]


@pytest.mark.parametrize(("prompt", "given", "kind", "says"), BAD, ids=lambda v: repr(v)[:30])
def test_refused(tiny, prompt, given, kind, says):
    with pytest.raises(kind, match=says) as caught:
        tiny.stream(prompt, **given)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("source", ["", "  ", 5, "a" * 5000])
def test_no_model_of_that_name(source):
    with pytest.raises(CheckpointError):
        unmask.load(source)


@pytest.mark.parametrize("given", [{"samples": 2}, {"chat": False}])
def test_a_chat_gives_one_templated_answer(tiny, given):
    with pytest.raises(RequestError, match="one answer"):
        unmask.ChatSession(tiny).ask("x", max_tokens=4, **given)


def test_scores_that_are_no_numbers_fail_the_run(tiny_dirs):
    model = unmask.load(tiny_dirs["llada"], dtype="fp32", device="cpu")
    model.denoiser.head.weight.data.fill_(float("nan"))
    with pytest.raises(unmask.RunError, match="NaN"):
        model.generate("x", max_tokens=4)


@pytest.mark.parametrize(
    "given",
    [{"steps": 4}, {"policy": "low_confidence"}, {"schedule": "whole"}, {"cfg_scale": 1.0}, {"profile": "llada"}],
)
def test_an_autoregressive_model_leaves_no_choice(tiny_models, given):
    with pytest.raises(ConfigError, match="autoregressive"):
        tiny_models["qwen2"].generate("x", max_tokens=4, **given)


@pytest.mark.parametrize("source", ["", "no/such/dir", "random:giant", "nobody/nothing"])
def test_bad_sources_pass_through(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(unmask.InputError):
        unmask.load(source)


def test_bad_slots(tiny_dirs):
    with pytest.raises(unmask.InputError, match="slots"):
        unmask.load(tiny_dirs["llada"], slots=0)


def test_a_template_the_model_does_not_have(tiny_dirs, tmp_path):
    import shutil

    shutil.copytree(tiny_dirs["llada"], tmp_path / "base")
    config = tmp_path / "base" / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"chat_template"', '"was_template"'))
    model = unmask.load(tmp_path / "base", dtype="fp32", device="cpu")
    assert model.generate("x", max_tokens=4).canvas.prompt_len == len(model.codec.encode("x"))
    for given in ({"chat": True}, {"system": "s"}):
        with pytest.raises(unmask.InputError, match="chat template"):
            model.generate("x", max_tokens=4, **given)
