"""A benchmark measures what it claims, and gives ratios only between correct results."""

import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file

from ccsegformer.errors import CCSegformerError
from ccsegformer.lab.benchmark import attention, limits, model
from ccsegformer.lab.benchmark.contest import (
    best_limits,
    busy_process,
    disagreement,
    limit_specifications,
)
from ccsegformer.lab.benchmark.output import markdown
from ccsegformer.lab.benchmark.plan import (
    attention_contests,
    model_contests,
    only_runtime,
    plan_attention,
    plan_models,
    supported_runtimes,
)
from ccsegformer.lab.benchmark.tables import Measurement, add_ratios, measure

LIMITS = {"matrix product": 1e9, "copy": 1e9, "exponentials": 1e9}
PLACE = {"device": "cpu", "threads": 1}
GRID = {"batch": 1, "heads": 2, "head_dim": 8, "dtype": "float32", "training": True, **PLACE}
IMAGE = {"batch": 1, "dtype": "float32", "training": False, "device": "cpu", "height": 64, "width": 64}
RUNTIMES = ("OpenVINO", "ONNX Runtime")


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
        # 4 operations forward and 10 backward per key and channel, for 12 + 12 - 1 keys.
        assert row.gflop == pytest.approx(14 * 2 * 12 * 12 * 23 * 8 / 1e9)


def row(name: str, seconds: list[float], peak_mib: float, failure: str | None = None) -> Measurement:
    figures = {"gflop": 1.0, "of_bound": 0.5, "error": 1e-6}
    return Measurement(name, 8, 8, seconds, peak_mib, **figures, failure=failure)  # type: ignore[arg-type]


def test_ratios_are_relative_to_the_fastest_correct_rival() -> None:
    rows = [
        row("theirs", [3.0, 9.0, 2.0], 4.0),
        row("theirs, wrong", [1.0], 1.0, "results disagree"),
        row("theirs, slow", [4.0], 2.0),
        row("ours", [1.5], 1.0),
        row("ours, wrong", [0.5], 1.0, "results disagree"),
    ]
    compared = add_ratios(rows)
    assert [each.against for each in compared] == [None, None, None, "theirs", None]
    assert (compared[3].faster, compared[3].memory) == (2, 0.25)
    assert {each.faster for each in compared if each.name != "ours"} == {None}
    text = markdown("8 x 8", compared)
    assert text.count("×") == 1 and "ours, wrong: results disagree." in text


def test_without_a_correct_rival_there_are_no_ratios() -> None:
    rows = [row("theirs", [3.0], 4.0, "results disagree"), row("ours", [1.5], 1.0)]
    assert add_ratios(rows) == rows


def test_an_error_is_raised_if_no_rival_runs() -> None:
    rows = [Measurement("theirs", 8, 8, failure="no memory"), row("ours", [1.5], 1.0)]
    with pytest.raises(CCSegformerError, match=r"^theirs: no memory$"):
        add_ratios(rows)


def test_a_contender_that_fails_is_reported_in_one_line() -> None:
    rows = measure(of(attention_contests([5], ["fused"], GRID)), 1, LIMITS)
    assert rows[1].seconds is None
    assert rows[1].failure is not None
    assert rows[1].failure.startswith("ValueError: the fused backend") and "\n" not in rows[1].failure
    assert rows[1].failure in markdown("5 x 5", rows)


def test_errors_are_relative_and_by_name(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0])}, tmp_path / "right")
    save_file({"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([1.0])}, tmp_path / "wrong")
    save_file({"a": torch.tensor([3.0, torch.nan]), "b": torch.tensor([1.0])}, tmp_path / "nan")
    save_file({"a": torch.tensor([3.0, 4.0])}, tmp_path / "less")
    assert disagreement(tmp_path / "right", tmp_path / "right") == 0
    assert disagreement(tmp_path / "wrong", tmp_path / "right") == pytest.approx(0.1)
    assert disagreement(tmp_path / "nan", tmp_path / "right") == float("inf")
    with pytest.raises(CCSegformerError, match="different names"):
        disagreement(tmp_path / "less", tmp_path / "right")


@pytest.mark.parametrize("training", [False, True])
def test_ours_and_transformers_models_do_the_same_work(training: bool) -> None:
    common = {**IMAGE, "variant": "b0", "training": training}
    theirs = model.prepare(**common, implementation="transformers", attention="efficient")
    for attention_kind in ("efficient", "criss_cross"):
        ours = model.prepare(**common, implementation="ours", attention=attention_kind)
        expected, exact = theirs.results(), attention_kind == "efficient"
        for name, tensor in ours.results().items():
            close = tensor.shape == expected[name].shape and torch.allclose(
                tensor, expected[name], rtol=1e-3, atol=1e-3 * float(expected[name].abs().max())
            )
            # With random weights, the loss is about log 150 whatever the attention.
            assert close == exact or name == "loss"
        assert ours.amounts["matrix product"] > 1e8


def names_of(compiled: bool = False, runtimes: tuple[str, ...] = (), **common: Any) -> list[str]:
    settings = {**IMAGE, "threads": 1, **common}
    return list(of(model_contests(["b0"], [64], ["efficient"], compiled, "", settings, runtimes)))


def test_every_way_to_run_a_model_takes_part() -> None:
    plain = ["transformers", "transformers, channels-last"]
    assert names_of(runtimes=RUNTIMES) == [
        *(*plain, "transformers, in OpenVINO", "transformers, in ONNX Runtime", "efficient"),
        *("efficient, eager", "efficient, ONNX in OpenVINO", "efficient, ONNX in ONNX Runtime"),
    ]
    assert names_of(runtimes=("OpenVINO",)) == [
        *(*plain, "transformers, in OpenVINO", "efficient", "efficient, eager")
    ]
    assert names_of(runtimes=("ONNX Runtime",)) == [
        *(*plain, "transformers, in ONNX Runtime", "efficient", "efficient, ONNX in ONNX Runtime")
    ]
    assert names_of(compiled=True) == [
        *(*plain, "transformers, compiled", "transformers, channels-last, compiled"),
        *("efficient", "efficient, compiled"),
    ]


def test_runtimes_support_only_inference_on_a_cpu() -> None:
    assert supported_runtimes(IMAGE) == set(RUNTIMES)
    assert supported_runtimes({**IMAGE, "dtype": "bfloat16"}) == {"OpenVINO"}
    for other in ({"training": True}, {"device": "cuda"}, {"dtype": "float16"}):
        assert supported_runtimes({**IMAGE, **other}) == set()


def test_contenders_can_be_limited_to_one_runtime() -> None:
    common = {**IMAGE, "threads": 1}
    found = of(model_contests(["b0"], [64], ["efficient"], False, "", common, RUNTIMES))
    assert list(only_runtime("openvino", found)) == ["transformers, in OpenVINO", "efficient"]
    assert list(only_runtime("onnxruntime", found)) == [
        "transformers, in ONNX Runtime",
        "efficient, ONNX in ONNX Runtime",
    ]
    with pytest.raises(CCSegformerError, match="no contender runs in openvino"):
        only_runtime("openvino", only_runtime("eager", found))


def test_names_describe_their_contenders() -> None:
    [(heading, found)] = model_contests(
        ["b0"], [64], ["criss_cross"], True, "2 threads", {**IMAGE, "threads": 2}, RUNTIMES
    )
    assert heading == "SegFormer-B0, 2 threads, 64 x 64"
    runtimes = {name: each.get("runtime", "eager") for name, each in found.items()}
    assert runtimes["transformers, in OpenVINO"] == runtimes["criss_cross"] == "openvino"
    assert runtimes["criss_cross, eager"] == runtimes["criss_cross, compiled"] == "eager"
    for name, each in found.items():
        assert each["implementation"] == ("transformers" if name.startswith("transformers") else "ours")
        assert each.get("compiled", False) == name.endswith("compiled")


def test_a_plan_of_models_describes_itself() -> None:
    plan = plan_models(["b0"], [64, 96], ["efficient"], threads=3, busy=True, runtime="eager")
    assert plan.name == "model-inference-float32-batch-1-threads-3-busy"
    assert plan.title.startswith("B0 ") and plan.title.endswith("one core kept busy")
    assert list(plan.contests) == [
        f"SegFormer-B0, 3 threads, one core kept busy, {side} x {side}" for side in (64, 96)
    ]
    assert {each["threads"] for found in plan.contests.values() for each in found.values()} == {3}


def test_a_plan_of_attention_describes_itself() -> None:
    plan = plan_attention([8], heads=2, training=True, dtype="bfloat16")
    assert plan.name == "attention-training-bfloat16-batch-1"
    assert "2 heads of 32 channels" in plan.title
    assert {each["dtype"] for found in plan.contests.values() for each in found.values()} == {"bfloat16"}


def test_results_are_checked_against_other_computations() -> None:
    own = {**IMAGE, "kind": "model", "variant": "b0", "implementation": "ours", "height": 1024, "width": 1024}
    exact, _ = model.truth({**own, "attention": "efficient", "compiled": True, "runtime": "openvino"})
    assert (exact["implementation"], exact["compiled"], exact["height"]) == ("transformers", False, 1024)
    assert exact["runtime"] == "eager"
    exact, name = model.truth({**own, "attention": "criss_cross"})
    assert (exact["dtype"], exact["height"], name) == (
        "float64", 256, "the textbook formula, float64, at 256 x 256"
    )  # fmt: skip
    exact, _ = attention.truth({**GRID, "backend": "flash", "height": 512, "width": 512})
    assert (exact["backend"], exact["compute"], exact["height"]) == ("reference", "float64", 128)


def test_limits_count_the_work_done() -> None:
    def amounts(what: str, dtype: str = "float32") -> dict[str, int]:
        work = limits.prepare(what=what, dtype=dtype, device="cpu")
        work.run()
        return work.amounts

    elements = limits.CACHED * torch.get_num_threads()
    assert amounts("matrix product") == {"matrix product": 2 * limits.SIDE**3}
    assert amounts("copy", "bfloat16") == {"copy": 2 * 2 * limits.ELEMENTS}
    assert amounts("exponentials") == {"exponentials": elements * limits.TIMES}


def test_the_bound_is_the_limit_that_takes_longest() -> None:
    [row] = measure(of(attention_contests([4], [], GRID)), 1, {**LIMITS, "exponentials": 1.0})
    assert row.seconds is not None
    assert row.of_bound == pytest.approx(2 * 2 * 4 * 4 * 7 / row.seconds[0])  # two heads, each score twice
    assert row.bound == "exponentials"
    assert "Bound by: exponentials." in markdown("4 x 4", [row])
    assert measure(of(attention_contests([4], [], GRID)), 1, {**LIMITS, "copy": 1.0})[0].bound == "copy"


def test_the_limit_of_products_is_the_better_of_two() -> None:
    seconds = {"copy": [2.0, 4.0], "OpenVINO": [0.5]}

    def limits_with(specifications: dict[str, dict[str, Any]]) -> dict[str, float]:
        return best_limits(
            {"seconds": seconds.get(name, [1.0]), "amounts": {each["what"]: 8}}
            for name, each in specifications.items()
        )

    both = limits_with(limit_specifications("float32", "cpu", 1, has_openvino=True))
    assert both == {"matrix product": 16, "copy": 4, "exponentials": 8}
    for dtype, device, has_openvino in (
        ("float16", "cpu", True),
        ("float32", "cuda", True),
        ("float32", "cpu", False),
    ):
        specifications = limit_specifications(dtype, device, 1, has_openvino)
        assert limits_with(specifications)["matrix product"] == 8
    with pytest.raises(CCSegformerError, match="no memory"):
        best_limits([{"failure": "no memory"}])


def test_a_busy_process_runs_as_long_as_its_block() -> None:
    this = psutil.Process()
    before = this.children()
    with busy_process():
        [busy] = [child for child in this.children() if child not in before]
        assert busy.nice() == this.nice()
        start = busy.cpu_times().user
        deadline = time.monotonic() + 20
        while busy.cpu_times().user < start + 0.1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert busy.cpu_times().user >= start + 0.1
    assert not busy.is_running()
