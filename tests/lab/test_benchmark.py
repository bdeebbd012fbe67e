"""A benchmark measures what it says, and tells no ratio between results that disagree."""

import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file

from ccsegformer.errors import CCSegformerError
from ccsegformer.lab.benchmark import attention, contest, limits, model, runtimes, tables
from ccsegformer.lab.benchmark.output import markdown
from ccsegformer.lab.benchmark.tables import attention_contests, measure, model_contests, run_by

LIMITS = {"matrix product": 1e9, "copy": 1e9, "exponentials": 1e9}
PLACE = {"device": "cpu", "threads": 1}
GRID = {"batch": 1, "heads": 2, "head_dim": 8, "dtype": "float32", "training": True, **PLACE}
IMAGE = {"batch": 1, "dtype": "float32", "training": False, "device": "cpu", "height": 64, "width": 64}


def of(contests: Any) -> Any:
    [(_, specifications)] = contests
    return specifications


def test_a_contest_gives_times_memory_and_ratios() -> None:
    rows = measure(of(attention_contests([12], ["flash"], GRID)), 2, LIMITS)
    textbook, flash = rows
    assert (textbook.name, flash.name) == ("textbook formula", "flash")
    assert flash.against == "textbook formula"
    assert flash.failure is None
    assert flash.faster is not None
    assert flash.faster > 0
    assert (textbook.faster, textbook.against) == (None, None)
    for row in rows:
        assert row.seconds is not None
        assert len(row.seconds) == 2
        assert row.error is not None
        assert 0 < row.error < 1e-5
        assert row.checked_against == "the textbook formula, float64, at 12 x 12"
        # Forward 4 and backward 10 operations a key and channel, on 12 + 12 - 1 keys.
        assert row.gflop == pytest.approx(14 * 2 * 12 * 12 * 23 * 8 / 1e9)


def test_results_that_disagree_get_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contest.TOLERANCES, "float32", 0.0)
    flash = measure(of(attention_contests([5], ["flash"], GRID)), 1, LIMITS)[1]
    assert (flash.faster, flash.memory) == (None, None)
    assert flash.failure == "its results disagree with the textbook formula, float64, at 5 x 5"
    assert flash.failure in markdown("5 x 5", [flash])
    assert "×" not in markdown("5 x 5", [flash])


def test_a_contender_that_fails_is_a_line() -> None:
    rows = measure(of(attention_contests([5], ["fused"], GRID)), 1, LIMITS)
    assert rows[1].seconds is None
    assert (
        rows[1].failure
        == "ValueError: the fused backend does not support these tensors: it runs on cuda, not on cpu"
    )
    assert rows[1].failure in markdown("5 x 5", rows)


def test_errors_are_relative_and_by_name(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0])}, tmp_path / "right")
    save_file({"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([1.0])}, tmp_path / "wrong")
    save_file({"a": torch.tensor([3.0, torch.nan]), "b": torch.tensor([1.0])}, tmp_path / "nan")
    save_file({"a": torch.tensor([3.0, 4.0])}, tmp_path / "less")
    assert contest.disagreement(tmp_path / "right", tmp_path / "right") == 0
    assert contest.disagreement(tmp_path / "wrong", tmp_path / "right") == pytest.approx(0.1)
    assert contest.disagreement(tmp_path / "nan", tmp_path / "right") == float("inf")
    with pytest.raises(CCSegformerError, match="differ in names"):
        contest.disagreement(tmp_path / "less", tmp_path / "right")


@pytest.mark.parametrize("training", [False, True])
def test_models_of_a_contest_do_the_same_work(training: bool) -> None:
    common = {**IMAGE, "variant": "b0", "training": training}
    theirs = model.prepare(**common, implementation="transformers", attention="efficient")
    for attention_kind in ("efficient", "criss_cross"):
        ours = model.prepare(**common, implementation="ours", attention=attention_kind)
        expected, exact = theirs.results(), attention_kind == "efficient"
        for name, tensor in ours.results().items():
            close = tensor.shape == expected[name].shape and torch.allclose(
                tensor, expected[name], rtol=1e-3, atol=1e-3 * float(expected[name].abs().max())
            )
            assert close == exact or name == "loss"  # a loss of random weights is log 150, whatever attends
        assert ours.amounts["matrix product"] > 1e8


def names_of(compiled: bool = False, **common: Any) -> list[str]:
    settings = {**IMAGE, "threads": 1, **common}
    return list(of(model_contests(["b0"], [64], ["efficient"], compiled, "1 thread", settings)))


def test_every_way_to_run_a_model_takes_part_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "missing", dict)
    plain = ["transformers", "transformers, channels-last"]
    assert names_of() == [
        *(*plain, "transformers, in OpenVINO", "transformers, in ONNX Runtime", "efficient"),
        *("efficient, eager", "efficient, ONNX in OpenVINO", "efficient, ONNX in ONNX Runtime"),
    ]
    assert names_of(dtype="bfloat16") == [
        *(*plain, "transformers, in OpenVINO", "efficient", "efficient, eager")
    ]
    for outside in ({"training": True}, {"device": "cuda"}, {"dtype": "float16"}):
        assert names_of(**outside) == [*plain, "efficient"]
    assert names_of(compiled=True, training=True) == [
        *(*plain, "transformers, compiled", "transformers, channels-last, compiled"),
        *("efficient", "efficient, compiled"),
    ]
    monkeypatch.setattr(tables, "missing", lambda: {"OpenVINO": "openvino"})
    assert names_of() == [
        *(*plain, "transformers, in ONNX Runtime", "efficient", "efficient, ONNX in ONNX Runtime")
    ]


def test_a_contest_keeps_to_one_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "missing", dict)
    found = of(model_contests(["b0"], [64], ["efficient"], False, "", {**IMAGE, "threads": 1}))
    assert list(run_by("openvino", found)) == ["transformers, in OpenVINO", "efficient"]
    assert list(run_by("onnxruntime", found)) == [
        "transformers, in ONNX Runtime",
        "efficient, ONNX in ONNX Runtime",
    ]
    with pytest.raises(CCSegformerError, match="openvino runs none of them: transformers, "):
        run_by("openvino", run_by("eager", found))


def test_each_name_is_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "missing", dict)
    [(heading, found)] = model_contests(
        ["b0"], [64], ["criss_cross"], True, "2 threads", {**IMAGE, "threads": 2}
    )
    assert heading == "SegFormer-B0, 2 threads, 64 x 64"
    runtimes = {name: each.get("runtime", "eager") for name, each in found.items()}
    assert runtimes["transformers, in OpenVINO"] == runtimes["criss_cross"] == "openvino"
    assert runtimes["criss_cross, eager"] == runtimes["criss_cross, compiled"] == "eager"
    for name, each in found.items():
        assert each["implementation"] == ("transformers" if name.startswith("transformers") else "ours")
        assert each.get("compiled", False) == name.endswith("compiled")


def test_ratios_are_against_the_fastest_rival_that_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"theirs": 3.0, "theirs, wrong": 1.0, "theirs, slow": 4.0, "ours": 1.5}
    errors = {name: 1.0 if name == "theirs, wrong" else 1e-6 for name in seconds}
    found = {
        name: {"seconds": [each], "peak_bytes": 2**20, "amounts": {"matrix product": 1}, "results": name}
        for name, each in seconds.items()
    }
    monkeypatch.setattr(tables, "contest", lambda *_: found)
    monkeypatch.setattr(tables, "_results", lambda *_: "truth")
    monkeypatch.setattr(tables, "disagreement", lambda results, truth: errors[results])
    common = {**IMAGE, "kind": "model", "attention": "efficient"}
    rows = {row.name: row for row in measure(dict.fromkeys(seconds, common), 1, LIMITS)}
    assert (rows["ours"].against, rows["ours"].faster, rows["ours"].memory) == ("theirs", 2, 1)
    assert rows["theirs, wrong"].failure == "its results disagree with transformers, float32"
    assert {rows[name].faster for name in seconds if name != "ours"} == {None}


def test_truths_are_other_computations() -> None:
    own = {**IMAGE, "kind": "model", "variant": "b0", "implementation": "ours", "height": 1024, "width": 1024}
    exact, name = model.truth({**own, "attention": "efficient", "compiled": True, "runtime": "openvino"})
    assert (exact["implementation"], exact["compiled"], exact["height"]) == ("transformers", False, 1024)
    assert exact["runtime"] == "eager"
    exact, name = model.truth({**own, "attention": "criss_cross"})
    assert (exact["dtype"], exact["height"], name) == (
        "float64", 256, "the textbook formula, float64, at 256 x 256"
    )  # fmt: skip
    exact, _ = attention.truth({**GRID, "backend": "flash", "height": 512, "width": 512})
    assert (exact["backend"], exact["compute"], exact["height"]) == ("reference", "float64", 128)


def test_limits_count_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SIDE", 64)
    monkeypatch.setattr(limits, "ELEMENTS", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def amounts(what: str, dtype: str = "float32") -> dict[str, int]:
        work = limits.prepare(what=what, dtype=dtype, device="cpu")
        work.run()
        return work.amounts

    assert amounts("matrix product") == {"matrix product": 2 * 64**3}
    assert amounts("copy", "bfloat16") == {"copy": 2 * 2 * 100}
    assert amounts("exponentials") == {"exponentials": 2 * limits.CACHED * limits.TIMES}


def test_the_bound_is_the_limit_that_takes_longest() -> None:
    [row] = measure(of(attention_contests([4], [], GRID)), 1, {**LIMITS, "exponentials": 1.0})
    assert row.seconds is not None
    assert row.of_bound == pytest.approx(2 * 2 * 4 * 4 * 7 / row.seconds[0])  # two heads, twice each
    assert row.bound == "exponentials"
    assert "Bound: exponentials." in markdown("4 x 4", [row])
    assert measure(of(attention_contests([4], [], GRID)), 1, {**LIMITS, "copy": 1.0})[0].bound == "copy"


def test_none_of_the_rivals_running_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {"textbook formula": {"failure": "no memory", "seconds": []}}
    monkeypatch.setattr(tables, "contest", lambda *_: failed)
    with pytest.raises(CCSegformerError, match=r"^textbook formula: no memory$"):
        measure({"textbook formula": {"height": 8, "width": 8}}, 1, LIMITS)


def test_the_limit_of_products_is_the_better_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(specifications: dict[str, Any], *_: Any) -> dict[str, Any]:
        seconds = {"copy": [2.0, 4.0], "OpenVINO": [0.5]}
        return {
            name: {"seconds": seconds.get(name, [1.0]), "amounts": {each["what"]: 8}}
            for name, each in specifications.items()
        }

    monkeypatch.setattr(contest, "contest", found)
    monkeypatch.setattr(runtimes, "missing", dict)
    assert contest.measure_limits("float32", "cpu", 1) == {"matrix product": 16, "copy": 4, "exponentials": 8}
    assert contest.measure_limits("float16", "cpu", 1)["matrix product"] == 8
    monkeypatch.setattr(runtimes, "missing", lambda: {"OpenVINO": "openvino"})
    assert contest.measure_limits("float32", "cpu", 1)["matrix product"] == 8


def test_a_busy_process_is_there_as_long_as_it_should_be() -> None:
    this = psutil.Process()
    before = this.children()
    with contest.busy_process():
        [busy] = [child for child in this.children() if child not in before]
        assert busy.nice() == this.nice()
        start = busy.cpu_times().user
        deadline = time.monotonic() + 20
        while busy.cpu_times().user < start + 0.1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert busy.cpu_times().user >= start + 0.1
    assert not busy.is_running()
