"""`verify`: recorded cases pass as they are; change one expected number and exactly that case fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask.core.errors import CheckpointError, InputError
from unmask.evals.verify import CaseResult, verify_dir
from unmask.testing import check_model

RECORDED = Path(__file__).resolve().parents[1] / "fixtures"
LLADA, DREAM, V2 = RECORDED / "llada" / "mha", RECORDED / "dream" / "gqa", RECORDED / "fastdllm_v2" / "gqa"
Case = dict[str, Any]


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "cases.json").read_text("utf-8"))


def copy(folder: Path, target: Path, keep: Callable[[Case], bool] = lambda c: True) -> Path:
    """A writable copy with some of its cases."""
    shutil.copytree(folder, target, copy_function=shutil.copyfile)
    data = read(folder)
    data["cases"] = [c for c in data["cases"] if keep(c)]
    (target / "cases.json").write_text(json.dumps(data), "utf-8")
    return target


def change(folder: Path, id: str, edit: Callable[[Case], None]) -> None:
    data = read(folder)
    edit(next(c for c in data["cases"] if c["id"] == id))
    (folder / "cases.json").write_text(json.dumps(data), "utf-8")


def failures(folder: Path) -> dict[str, str]:
    return {r.id: r.detail for r in verify_dir(folder).failed}


@pytest.mark.parametrize(("folder", "cases"), [(LLADA, 93), (DREAM, 75), (V2, 54)], ids=["llada", "dream", "v2"])
def test_every_recorded_case_passes(folder: Path, cases: int) -> None:
    seen: list[tuple[CaseResult, int, int]] = []
    report = verify_dir(folder, lambda *args: seen.append(args))
    assert [r.detail for r in report.failed] == []
    assert len(report.results) == cases
    assert report.largest_logit_error is not None and report.largest_logit_error < 1e-4
    assert [(n, total) for _, n, total in seen] == [(i + 1, cases) for i in range(cases)]
    told = report.to_dict()
    assert (told["passed"], told["failed"]) == (cases, 0)
    assert sum(k["cases"] for k in told["kinds"].values()) == cases
    json.dumps(told)


# ---- one number changed ----------------------------------------------------------------------------------------------

SOME_LLADA = {
    "logits_nomask", "logits_leftpad", "logits_prefix_cache", "logits_dual_cache", "base_g32_s32_b32", "base_batch2",
    "base_batch3_leftpad", "cfg0.5_g32_s16_b16", "fast_none_g32_s32_b32", "fast_prefix_batch3_thr0.567",
    "fast_dual_g32_s32_b16", "ll_mc16", "ll_cfg0.5",
}  # fmt: skip
SOME_DREAM = {
    "logits_full", "logits_leftpad", "logits_prefix_cache", "logits_dual_cache", "base_maskgit_plus_g32_s16_eps0.001",
    "base_origin_g32_s16_eps0.001_seed7", "base_maskgit_plus_batch3_leftpad", "fdbase_g32_s8_thr0.9",
    "block_prefix_entropy_g32_s16_b16_eps0.001", "block_dual_entropy_g32_s32_b8_eps0.001",
}  # fmt: skip

SOME_V2 = {
    "logits_bs8", "logits_block_with_prefix", "logits_subblock_cache", "train_forward",
    "quirk_prompt_len_equals_block_size", "stop_P13_nobc_sb8_thr1.0", "batch_32_20_n32_sb8_bc_thr0.9",
}  # fmt: skip


def token(case: Case) -> None:
    last = case["expected"]["sequences"][-1]
    last[-2] = last[-2] - 1 if last[-2] else 1


def prompt_token(case: Case) -> None:
    case["expected"]["sequences"][0][0] += 1


def one_token_less(case: Case) -> None:
    case["expected"]["sequences"][0].pop()


def one_row_less(case: Case) -> None:
    case["expected"]["sequences"].pop()


def nfe(case: Case) -> None:
    case["expected"]["nfe"] += 1


def trace_rows(case: Case) -> None:
    case["trace"][-1][0] += 1


def trace_masks(case: Case) -> None:
    case["trace"][1][1] -= 1


def trace_length(case: Case) -> None:
    case["trace"].append(case["trace"][-1])


def history(case: Case) -> None:
    case["history"][3][0][0] += 1


def history_length(case: Case) -> None:
    case["history"].pop()


def per_batch(case: Case) -> None:
    case["expected"]["per_batch"][-1] += 3 * case["tol"]


def log_likelihood(case: Case) -> None:
    case["expected"]["log_likelihood"] -= 3 * case["tol"]


def not_a_number(case: Case) -> None:
    case["expected"]["log_likelihood"] = float("nan")


def fewer_batches(case: Case) -> None:
    case["expected"]["per_batch"].pop()


def loss(case: Case) -> None:
    case["expected"]["loss"] += 1e-3


def wrong_tensor_name(case: Case) -> None:
    case["tensor"] += "_of_nobody"


def no_expectation(case: Case) -> None:
    del case["expected"]


EDITS = [
    (LLADA, "base_g32_s32_b32", token),
    (LLADA, "base_g32_s32_b32", prompt_token),
    (LLADA, "base_g32_s32_b32", nfe),
    (LLADA, "base_g32_s32_b32", one_token_less),
    (LLADA, "base_g32_s32_b32", no_expectation),
    (LLADA, "base_batch2", token),
    (LLADA, "base_batch2", one_row_less),
    (LLADA, "base_batch3_leftpad", nfe),
    (LLADA, "base_batch3_leftpad", token),
    (LLADA, "cfg0.5_g32_s16_b16", token),
    (LLADA, "cfg0.5_g32_s16_b16", trace_masks),
    (LLADA, "fast_none_g32_s32_b32", trace_rows),
    (LLADA, "fast_prefix_batch3_thr0.567", token),
    (LLADA, "fast_prefix_batch3_thr0.567", nfe),
    (LLADA, "fast_dual_g32_s32_b16", trace_length),
    (LLADA, "fast_dual_g32_s32_b16", nfe),
    (LLADA, "ll_mc16", per_batch),
    (LLADA, "ll_mc16", fewer_batches),
    (LLADA, "ll_cfg0.5", log_likelihood),
    (LLADA, "ll_cfg0.5", not_a_number),
    (LLADA, "logits_nomask", wrong_tensor_name),
    (DREAM, "base_maskgit_plus_g32_s16_eps0.001", token),
    (DREAM, "base_maskgit_plus_g32_s16_eps0.001", nfe),
    (DREAM, "base_origin_g32_s16_eps0.001_seed7", history),
    (DREAM, "base_origin_g32_s16_eps0.001_seed7", history_length),
    (DREAM, "base_origin_g32_s16_eps0.001_seed7", token),
    (DREAM, "base_maskgit_plus_batch3_leftpad", token),
    (DREAM, "fdbase_g32_s8_thr0.9", token),
    (DREAM, "fdbase_g32_s8_thr0.9", trace_masks),
    (DREAM, "block_prefix_entropy_g32_s16_b16_eps0.001", trace_rows),
    (DREAM, "block_dual_entropy_g32_s32_b8_eps0.001", nfe),
    (DREAM, "block_dual_entropy_g32_s32_b8_eps0.001", token),
    (V2, "stop_P13_nobc_sb8_thr1.0", token),
    (V2, "stop_P13_nobc_sb8_thr1.0", nfe),
    (V2, "stop_P13_nobc_sb8_thr1.0", trace_masks),
    (V2, "quirk_prompt_len_equals_block_size", token),
    (V2, "batch_32_20_n32_sb8_bc_thr0.9", token),
    (V2, "batch_32_20_n32_sb8_bc_thr0.9", one_row_less),
    (V2, "batch_32_20_n32_sb8_bc_thr0.9", nfe),
    (V2, "batch_32_20_n32_sb8_bc_thr0.9", trace_rows),
    (V2, "train_forward", loss),
]


def _few(folder: Path, target: Path, id: str) -> Path:
    """The case and three others of its folder: enough to see that only it fails."""
    some = {LLADA: SOME_LLADA, DREAM: SOME_DREAM, V2: SOME_V2}[folder]
    others = sorted(some - {id}, key=lambda n: ("logits" not in n, n))[:2]
    return copy(folder, target, lambda c: c["id"] in {id, *others})


@pytest.mark.parametrize(("folder", "id", "edit"), EDITS, ids=lambda v: getattr(v, "__name__", getattr(v, "name", v)))
def test_a_changed_expectation_fails_its_case_alone(
    folder: Path, id: str, edit: Callable[[Case], None], tmp_path: Path
) -> None:
    place = _few(folder, tmp_path / "copy", id)
    change(place, id, edit)
    assert list(failures(place)) == [id]


@pytest.mark.parametrize("folder", [LLADA, DREAM], ids=["llada", "dream"])
@pytest.mark.parametrize("id", ["logits_full", "logits_leftpad", "logits_prefix_cache", "logits_dual_cache"])
@pytest.mark.parametrize("amount", [0.0025, float("nan")])
def test_a_changed_logit_fails_its_case_alone(folder: Path, id: str, amount: float, tmp_path: Path) -> None:
    place = copy(folder, tmp_path / "copy", lambda c: c["kind"].startswith("logits"))
    case = next(c for c in read(place)["cases"] if c["id"] == id)
    tensors = load_file(place / "logits.safetensors")
    tensors[case["tensor"]][0, -1, 7] += amount
    save_file(tensors, place / "logits.safetensors")
    assert list(failures(place)) == [id]
    report = verify_dir(place)
    json.dumps(report.to_dict(), allow_nan=False)


def test_padded_columns_are_not_compared_and_small_errors_pass(tmp_path: Path) -> None:
    place = copy(LLADA, tmp_path / "copy", lambda c: c["id"] in {"logits_leftpad", "logits_nomask"})
    cases = {c["id"]: c for c in read(place)["cases"]}
    tensors = load_file(place / "logits.safetensors")
    mask = torch.tensor(cases["logits_leftpad"]["inputs"]["attention_mask"]).bool()
    padded = tensors[cases["logits_leftpad"]["tensor"]]
    if padded.shape[:2] == mask.shape:
        padded[~mask] += 100
    tensors[cases["logits_nomask"]["tensor"]] += 0.0015
    save_file(tensors, place / "logits.safetensors")
    report = verify_dir(place)
    assert not report.failed
    assert report.largest_logit_error == pytest.approx(0.0015, abs=1e-4)


def test_many_changes_at_once_fail_exactly_those_cases(tmp_path: Path) -> None:
    place = copy(LLADA, tmp_path / "copy", lambda c: c["id"] in SOME_LLADA)
    for id, edit in (("base_batch2", token), ("fast_dual_g32_s32_b16", nfe), ("ll_mc16", per_batch)):
        change(place, id, edit)
    report = verify_dir(tmp_path)
    assert {r.id for r in report.failed} == {"base_batch2", "fast_dual_g32_s32_b16", "ll_mc16"}
    assert len(report.results) == len(SOME_LLADA)
    told = report.to_dict()
    assert (told["passed"], told["failed"]) == (len(SOME_LLADA) - 3, 3)
    assert {f["id"] for f in told["failures"]} == {r.id for r in report.failed}


def test_other_weights_fail_every_case(tmp_path: Path) -> None:
    place = copy(DREAM, tmp_path / "copy", lambda c: c["id"] in SOME_DREAM)
    weights = load_file(place / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= -1
    save_file(weights, place / "model.safetensors")
    assert len(failures(place)) == len(SOME_DREAM)


# ---- bad input -------------------------------------------------------------------------------------------------------


def _edit(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(place: Path) -> None:
        data = read(place)
        edit(data)
        (place / "cases.json").write_text(json.dumps(data), "utf-8")

    return apply


def _cut(name: str) -> Callable[[Path], None]:
    def apply(place: Path) -> None:
        content = (place / name).read_bytes()
        (place / name).write_bytes(content[: len(content) // 2])

    return apply


BAD = {
    "unknown kind": _edit(lambda d: d["cases"][0].update(kind="telepathy")),
    "kind is a list": _edit(lambda d: d["cases"][0].update(kind=["logits"])),
    "unknown reference": _edit(lambda d: d["cases"][0].update(reference="somebody")),
    "reference of the other family": _edit(lambda d: d["cases"][0].update(reference="dream_hf")),
    "unknown family": _edit(lambda d: d.update(family="gpt")),
    "family is a list": _edit(lambda d: d.update(family=["llada"])),
    "no family": _edit(lambda d: d.pop("family")),
    "no mask id": _edit(lambda d: d.pop("mask_id")),
    "mask id is a word": _edit(lambda d: d.update(mask_id="[MASK]")),
    "no cases": _edit(lambda d: d.update(cases=[])),
    "cases are words": _edit(lambda d: d.update(cases=["a"])),
    "a case without id": _edit(lambda d: d["cases"][0].pop("id")),
    "damaged json": _cut("cases.json"),
    "json that is a list": lambda p: (p / "cases.json").write_text("[]", "utf-8") and None,
    "cases not in utf-8": lambda p: (p / "cases.json").write_bytes(b"\xff\xfe{}") and None,
    "truncated weights": _cut("model.safetensors"),
    "truncated logits": _cut("logits.safetensors"),
    "empty logits": lambda p: (p / "logits.safetensors").write_bytes(b"") and None,
    "no logits": lambda p: (p / "logits.safetensors").unlink(),
    "no weights": lambda p: (p / "model.safetensors").unlink(),
    "no config": lambda p: (p / "config.json").unlink(),
    "damaged config": _cut("config.json"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_exit_code_2(name: str, tmp_path: Path) -> None:
    place = copy(LLADA, tmp_path / "copy", lambda c: c["id"] in {"logits_nomask", "base_g32_s32_b32"})
    BAD[name](place)
    with pytest.raises(InputError) as caught:
        verify_dir(tmp_path)
    assert caught.value.exit_code == 2
    assert str(caught.value).count("\n") == 0


def test_a_missing_or_empty_directory_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError):
            verify_dir(place)


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    place = copy(LLADA, tmp_path / "copy", lambda c: c["id"] == "logits_nomask")
    weights = load_file(place / "model.safetensors")
    name = "model.transformer.blocks.1.k_proj.weight"
    weights[name] = weights[name][:-1].contiguous()
    save_file(weights, place / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.k_proj"):
        verify_dir(place)


def test_command_line_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from unmask.cli.main import main

    place = copy(LLADA, tmp_path / "copy", lambda c: c["id"] in {"logits_nomask", "base_g32_s32_b32"})
    assert main(["verify", str(place)]) == 0
    assert "2 passed, 0 failed" in capsys.readouterr().out
    change(place, "base_g32_s32_b32", token)
    assert main(["verify", str(place)]) == 1
    out = capsys.readouterr().out
    assert "1 passed, 1 failed" in out and "base_g32_s32_b32" in out
    assert main(["verify", str(place), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["failed"] == 1 and told["kinds"]["logits"] == {"passed": 1, "cases": 1}
    change(place, "base_g32_s32_b32", lambda c: c.update(kind="telepathy"))
    assert main(["verify", str(place)]) == 2
    assert main(["verify", str(tmp_path / "nowhere")]) == 2
    assert "expected" in capsys.readouterr().err


V2_LOGITS = ("logits_nomask_bs32", "logits_bs16", "logits_block_with_prefix", "logits_subblock_cache", "train_forward")


@pytest.mark.parametrize("id", V2_LOGITS)
def test_a_changed_logit_of_a_block_model_fails_its_case_alone(id: str, tmp_path: Path) -> None:
    place = copy(V2, tmp_path / "copy", lambda c: c["kind"] != "generate")
    case = next(c for c in read(place)["cases"] if c["id"] == id)
    tensors = load_file(place / "logits.safetensors")
    tensors[case["tensor"]][0, -1, 7] += 0.0025
    save_file(tensors, place / "logits.safetensors")
    assert list(failures(place)) == [id]


@pytest.mark.parametrize("folder", [LLADA, DREAM, V2], ids=["llada", "dream", "v2"])
def test_the_recorded_checkpoints_pass_the_public_check_of_models(folder: Path) -> None:
    check_model(folder)
