"""The bridge to lm-eval: oracles through it, requests honoured, likelihoods, warnings, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_checkpoints
from eval_items import FUNCTIONS, SCIENCE, STORIES
from eval_toys import oracle
from harness_tasks import arc_task, code_task, gsm8k_task, isolated, lively

import unmask
from unmask.cli.main import main
from unmask.core import catalog
from unmask.core.errors import ConfigError, InputError
from unmask.engine.options import DecodeOptions
from unmask.evals.harness import OLDEST, require, wrap
from unmask.evals.harness.bridge import Bridge
from unmask.evals.harness.published import parse, understood
from unmask.evals.likelihood import Scoring, log_likelihood
from unmask.pipeline import Model

pytest.importorskip("lm_eval", reason="lm-eval (extra `harness`) is not installed")


def request(*args: Any, task: str = "own", doc: int = 0, fields: dict[str, Any] | None = None) -> Any:
    """What lm-eval hands to a model."""
    return SimpleNamespace(args=args, task_name=task, doc_id=doc, idx=0, doc=fields or {})


@pytest.fixture(scope="module")
def llada(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tiny_checkpoints.llada_checkpoint(tmp_path_factory.mktemp("bridge") / "llada-base")
    return unmask.load(lively(path), device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def v2(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tiny_checkpoints.v2_checkpoint(tmp_path_factory.mktemp("bridge") / "v2-base")
    return unmask.load(lively(path), device="cpu", dtype="fp32")


# ---- oracles ---------------------------------------------------------------------------------------------------------


def evaluated(model: Model, root: Path, task: str, **wanted: Any) -> dict[str, Any]:
    from unmask.evals.harness.run import Wanted, run

    lm = wrap(model, max_tokens=64, options=DecodeOptions(policy="threshold(0.9)"))
    found = run(lm, Wanted([task], str(root), **wanted))
    assert found is not None
    return found


@pytest.mark.parametrize(("right", "chat"), [(True, False), (True, True), (False, False)])
def test_an_oracle_through_engine_and_lm_eval_scores_one_and_a_wrong_one_zero(
    right: bool, chat: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolated(monkeypatch, tmp_path)
    root = gsm8k_task(tmp_path / "own", STORIES)
    task: Any = catalog.parse("task", "gsm8k(shots=2, pick='lm_eval')")
    data = task.load(str(root / "gsm8k"), "test")
    model = oracle(
        tmp_path / "oracle",
        task,
        data,
        lambda i: f" {i.fields['answer']}" if right else " #### 5",
        chat or None if chat else False,
    )
    found = evaluated(model, root, "gsm8k_own", num_fewshot=2, chat=chat)["results"]["gsm8k_own"]
    assert found["exact_match,strict"] == found["exact_match,flexible"] == float(right)


@pytest.mark.parametrize("right", [True, False])
def test_an_oracle_passes_its_programs_in_our_sandbox(
    right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolated(monkeypatch, tmp_path)
    root = code_task(tmp_path / "own", FUNCTIONS)
    task: Any = catalog.parse("task", "humaneval(post='plain')")
    data = task.load(str(root / "code"), "test")

    def answer(item: Any) -> str:
        return str(item.fields["canonical_solution"]) if right else "    return None\n"

    model = oracle(tmp_path / "oracle", task, data, answer, False)
    with pytest.raises(ConfigError, match="consent"):
        evaluated(model, root, "humaneval_own")
    found = evaluated(model, root, "humaneval_own", unsafe=True)
    assert found["results"]["humaneval_own"]["pass_at_1,whole"] == float(right)


# ---- requests --------------------------------------------------------------------------------------------------------


def test_every_request_keeps_its_stop_strings_its_length_and_its_place(llada: Model) -> None:
    lm = wrap(llada, batch=3, options=DecodeOptions(policy="low_confidence(steps=16)"))
    plain = {"max_gen_toks": 16}
    contexts = ["The quick brown", "def f(x):", "Why is the sky"]
    whole = [llada.generate(c, chat=False, max_tokens=16, policy="low_confidence(steps=16)").text for c in contexts]
    stop = whole[1][3:5]
    requests = [request(c, dict(plain), doc=i) for i, c in enumerate(contexts)]
    requests.append(request(contexts[1], {"until": [stop, ""], "max_gen_toks": 16}, doc=3))
    requests.append(request(contexts[0], {"until": "no such", "max_gen_toks": 8}, doc=4))
    found = lm.generate_until(requests)
    assert found[:3] == whole and len(set(whole)) == 3
    assert found[3] == whole[1][: whole[1].index(stop)]
    assert 0 < len(llada.codec.encode(found[4])) <= 8  # type: ignore[union-attr]
    assert lm.generate_until(requests[::-1]) == found[::-1]
    assert lm.spent["tokens"] > 0 and lm.spent["nfe"] >= 5


def test_a_rendered_conversation_is_answered_as_a_conversation(llada: Model) -> None:
    codec, policy = llada.codec, "low_confidence(steps=12)"
    assert codec is not None
    lm = wrap(llada, max_tokens=12, options=DecodeOptions(policy=policy))
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    text = lm.apply_chat_template(messages)
    assert text == codec.render_chat(messages) and lm.chat_template() == codec.template
    (found,) = lm.generate_until([request(text, {})])
    asked: Any = llada.generate(messages, max_tokens=12, policy=policy)
    assert found == asked.text
    begun = lm.apply_chat_template(
        [*messages, {"role": "assistant", "content": "Because"}], add_generation_prompt=False
    )
    assert begun == text + "Because"
    with pytest.raises(ConfigError, match="the checkpoint's own"):
        lm.chat_template("tool_use")
    assert "/" not in lm.tokenizer_name


def test_prompts_too_long_lose_their_beginning_and_that_is_said_once(llada: Model) -> None:
    from unmask.evals.harness.model import HarnessModel

    said: list[str] = []
    lm = HarnessModel(llada, Bridge(max_tokens=16), warn=said.append)
    long = "quick brown fox " * 60
    found = lm.generate_until([request(long, {}), request(long, {"top_k": 3, "stop_at": 1}, doc=1)])
    assert len(found) == 2 and sum("cut on the left" in s for s in said) == 1
    assert sum("'stop_at' has no effect" in s for s in said) == 1
    said.clear()
    assert len(lm.loglikelihood([request(long, " fox")])) == 1 and any("cut on the left" in s for s in said)


def test_a_tasks_sampling_is_followed_and_every_repeat_has_its_own_seed(llada: Model) -> None:
    lm = wrap(llada, max_tokens=16)
    hot = request("The quick", {"do_sample": True, "temperature": 1.5})
    first, second = lm.generate_until([hot, hot])
    assert first != second
    assert lm.generate_until([hot, hot]) == [first, second]


# ---- likelihoods -----------------------------------------------------------------------------------------------------


def test_likelihoods_are_those_of_unmask_score(llada: Model) -> None:
    lm = wrap(llada, scoring=Scoring("bound", 32, 16), seed=3)
    codec = llada.codec
    assert codec is not None
    found = lm.loglikelihood([request("The quick ", "brown fox"), request("", "Why")])
    whole = codec.encode("The quick brown fox")
    cut = len(codec.encode("The quick"))
    expected = log_likelihood(llada, whole[:cut], whole[cut:], method="bound", mc_num=32, batch=16, seed=3)
    assert found[0] == (expected.value, False)
    bos = codec.named("bos_token")
    assert bos is not None
    assert found[1][0] == log_likelihood(llada, [bos], codec.encode("Why"), mc_num=32, batch=16, seed=3).value


def test_autoregressive_models_are_exact_and_know_what_greedy_decoding_writes(tmp_path: Path) -> None:
    model = unmask.load(tiny_checkpoints.qwen2_checkpoint(tmp_path / "ar-base"), device="cpu", dtype="fp32")
    lm, codec = wrap(model), model.codec
    assert codec is not None
    best = model.generate("The quick", chat=False, max_tokens=1).ids
    prompt = codec.encode("The quick")
    other = (best[0] + 1) % 200
    found = [log_likelihood(model, prompt, [t], greedy=True).greedy for t in (best[0], other)]
    assert found == [True, False]
    ids = codec.encode("The quick brown fox jumps over the lazy dog. " * 8)
    assert len(ids) > model.traits.max_len / 2
    text = "The quick brown fox jumps over the lazy dog. " * 20
    (rolled,) = lm.loglikelihood_rolling([request(text)])
    tokens, most, prefix = codec.encode(text), model.traits.max_len - 1, codec.named("bos_token")
    first = log_likelihood(model, [prefix], tokens[:most]).value  # type: ignore[list-item]
    assert len(tokens) > most and rolled < first


@pytest.mark.parametrize("method", ["llada", "dream"])
def test_perplexity_by_a_published_estimate_is_refused_by_name(llada: Model, method: str) -> None:
    lm = wrap(llada, scoring=Scoring(method, 16, 16))
    with pytest.raises(ConfigError, match=method):
        lm.loglikelihood_rolling([request("The quick brown fox")])
    assert wrap(llada, scoring=Scoring("bound", 16, 16)).loglikelihood_rolling([request("The quick brown")])[0] < 0


def test_the_published_likelihood_of_v2_scores_the_first_token_only(v2: Model) -> None:
    codec = v2.codec
    assert codec is not None
    right, published = wrap(v2), wrap(v2, first_token=True)
    (whole,), (first,) = (lm.loglikelihood([request("The quick", " brown fox jumps")]) for lm in (right, published))
    assert first[0] > whole[0]  # one token instead of several
    prompt, answer = codec.encode("The quick"), codec.encode(" brown fox jumps")
    # by hand: the block with the first answer token, that one masked, the others and EOS in view, masks behind
    ids = [*prompt, *answer, v2.traits.eos_ids[0]]
    end = (len(prompt) // 8 + 1) * 8
    row = [*ids, *[v2.traits.mask_id or 0] * end][:end]
    row[len(prompt)] = v2.traits.mask_id or 0
    assert first[0] == pytest.approx(by_hand(v2, row, len(prompt), answer[0]), abs=1e-4)
    with pytest.raises(ConfigError, match="first token"):
        published.loglikelihood_rolling([request("The quick")])


def by_hand(model: Model, row: list[int], at: int, token: int) -> float:
    """log p of `token` at `at`, read from the row before, of one forward over whole blocks."""
    import torch

    from unmask.core.types import Batch, Lane, Plan
    from unmask.ops.score import logits_of

    n, query = len(row), ((0, len(row)),)
    want = model.denoiser.support(torch.tensor([at]))
    visible = model.traits.attention.visible(query, n, at // 8 * 8)
    lane = Lane(0, Plan(query, want, query, visible))
    with torch.inference_mode():
        store = model.denoiser.new_store(1, n)
        hidden = model.denoiser(Batch(torch.tensor(row), torch.arange(n), want, (lane,)), store).hidden
        return float(logits_of(hidden, model.denoiser.head).float().log_softmax(-1)[0, token])


# ---- known problems and refusals -------------------------------------------------------------------------------------


def test_known_problems_of_instruct_checkpoints_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    isolated(monkeypatch, tmp_path)
    path = tiny_checkpoints.llada_checkpoint(tmp_path / "llada-instruct", max_sequence_length=512)
    root = arc_task(gsm8k_task(tmp_path / "own", STORIES[:1]), SCIENCE[:1])
    run = ["eval", "--harness", "--model", str(path), "--include-path", str(root), "--dtype", "fp32", "--quiet"]
    short = ["--max-tokens", "8", "--limit", "1"]
    assert main([*run, "--tasks", "gsm8k_own", *short]) == 0
    assert "without its chat template" in capsys.readouterr().err
    assert main([*run, "--tasks", "gsm8k_own", *short, "--apply-chat-template"]) == 0
    assert "without its chat template" not in capsys.readouterr().err
    assert main([*run, "--tasks", "arc_challenge_own", "--mc-num", "16", "--json"]) == 0
    told = capsys.readouterr()
    assert "likelihood task on an Instruct checkpoint" in told.err
    assert json.loads(told.out)["results"]["arc_challenge_own"]["acc,none"] in (0.0, 1.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "no_such_own"], "task 'no_such_own'"),
        (["--tasks", "gsm8k_own", "--log-samples"], "--output-path"),
        (["--tasks", "gsm8k_own", "--model_args", "gen_length=8"], "--model llada_dist"),
        (["--tasks", "gsm8k_own", "--model", "dream", "--threshold", "0.9"], "expected model_path= or pretrained="),
        (["--tasks", "gsm8k_own", "--published-likelihood"], "fast_dllm_v2"),
        (["--tasks", "gsm8k_own", "--apply-chat-template", "rag"], "or default"),
        (["--tasks", "missing.yaml"], "no task file"),
        (["--tasks", ","], "at least one task"),
        (["--tasks", "gsm8k_own", "--limit", "1.5"], "a number of items from 1, or a share below 1"),
        (["--tasks", "gsm8k_own", "--gen-kwargs", "temperature=0,until"], "name=value"),
    ],
)
def test_what_cannot_be_done_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = gsm8k_task(tmp_path / "own", STORIES[:1])
    if "no_such_own" in words:  # the whole index takes ten seconds
        from unmask.evals.harness import run

        local = run.TaskManager
        monkeypatch.setattr(
            run, "TaskManager", lambda include_path, **_: local(include_path=include_path, include_defaults=False)
        )
    assert main(["eval", "harness", "--include-path", str(root), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("until: ", "until: 5, other: ", "until of the task; expected a text, or a list of texts"),
        ("task: ", "task: [", "a task's file; expected YAML"),
        ("metric: exact_match", "metric: !function nowhere.there", "the tasks"),
        ("/test.jsonl", "/nothing.jsonl", "the tasks' data and metrics"),
    ],
)
def test_a_broken_task_file_is_refused(
    old: str,
    new: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    isolated(monkeypatch, tmp_path)
    root = gsm8k_task(tmp_path / "own", STORIES[:1])
    (file,) = root.glob("*.yaml")
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1))
    path = tiny_checkpoints.llada_checkpoint(tmp_path / "llada", max_sequence_length=512)
    assert main(["eval", "harness", "--model", str(path), "--dtype", "fp32", "--tasks", str(file)]) == 2
    assert message in capsys.readouterr().err


def test_a_task_may_be_named_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llada: Model) -> None:
    isolated(monkeypatch, tmp_path)
    root = arc_task(tmp_path / "own", SCIENCE[:2])
    from unmask.evals.harness.run import Wanted, run

    lm = wrap(llada, scoring=Scoring("bound", 16, 16))
    by_name, by_file = run(lm, Wanted(["arc_challenge_own"], str(root))), run(lm, Wanted([str(root / "arc.yaml")]))
    assert by_name is not None and by_file is not None
    (named,), (filed,) = by_name["results"].values(), by_file["results"].values()
    assert filed["acc,none"] == named["acc,none"] and by_file["n-samples"] == by_name["n-samples"]


def test_an_old_or_missing_lm_eval_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert require()
    there = {"lm-eval": "0.4.2", "transformers": "5.0.0"}
    monkeypatch.setattr("unmask.evals.harness.version", there.__getitem__)
    with pytest.raises(ConfigError, match=r"0\.4\.2") as refused:
        require()
    assert "unmask[harness]" in refused.value.remedy and OLDEST == (0, 4, 8)
    there["lm-eval"] = "0.4.9.1"
    with pytest.raises(ConfigError, match=r"0\.4\.10 or later beside transformers 5\.0\.0") as refused:
        require()
    there["transformers"] = "4.57.6"
    assert "transformers<5" in refused.value.remedy and require() == "0.4.9.1"
    there["lm-eval"] = "0.4.9.2"
    with pytest.raises(ConfigError, match=r"but not 0\.4\.9\.2"):
        require()


# ---- published lines -------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_scripts() -> None:
    llada = understood("llada_dist", {"model_path": "x"}).bridge
    assert (llada.options.profile, llada.max_tokens, llada.options.steps, llada.options.block_length) == (
        "llada",
        1024,
        1024,
        1024,
    )
    assert (llada.scoring.method, llada.scoring.mc_num, llada.scoring.batch, llada.scoring.greedy) == (
        "llada",
        128,
        32,
        True,
    )
    fast = understood("llada_dist", parse("model_path=a/LLaDA-8B-Instruct,use_cache=True,cfg=1.0")).bridge
    assert fast.options.profile == "fast-dllm" and fast.wrap and fast.whole_code and fast.options.cfg_scale is None
    assert not understood("llada_dist", parse("model_path=GSAI-ML/LLaDA-1.5,use_cache=True")).bridge.wrap
    dream = understood("dream", {"pretrained": "x"}).bridge
    assert (dream.options.profile, dream.max_tokens, dream.options.alg, dream.max_length) == (
        "dream",
        128,
        "entropy",
        2048,
    )
    v2 = understood("fast_dllm_v2", {"model_path": "x"}).bridge
    assert (v2.max_tokens, v2.options.threshold, v2.options.block_length, v2.boxed, v2.cut) == (
        2048,
        0.9,
        32,
        True,
        False,
    )


def test_arguments_without_effect_are_named_once_each_with_a_reason() -> None:
    line = understood(
        "fast_dllm_v2", parse("model_path=x,reuse_k=2,layer_subset=[1,2],show_speed=True,save_dir=o,cfg=1")
    )
    assert [w.split()[0] for w in line.warnings] == ["reuse_k", "layer_subset", "show_speed", "save_dir", "cfg"]
    assert all("has no effect: " in w for w in line.warnings)
    fast = understood("llada_dist", parse("model_path=x,threshold=0.9,cfg=0.5"))
    assert [w.split()[0] for w in fast.warnings] == ["cfg"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llada_dist", "gen_length=8"),
        ("llada_dist", "model_path=a,pretrained=b"),
        ("llada_dist", "model_path=a,gen_lenght=8"),
        ("llada_dist", "model_path=a,gen_length=8.5"),
        ("llada_dist", "model_path=a,use_cache=maybe"),
        ("llada_dist", "model_path=a,steps"),
        ("llada_dist", "model_path=a,steps=1,steps=2"),
        ("llada_dist", "model_path=a,mc_num=1"),
        ("dream", "pretrained=a,nll_type=ar_btf"),
        ("dream", "pretrained=a,dtype=int4"),
    ],
)
def test_bad_model_arguments_are_refused(name: str, text: str) -> None:
    with pytest.raises(InputError):
        understood(name, parse(text))
