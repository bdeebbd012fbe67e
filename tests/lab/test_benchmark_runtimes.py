"""Other runtimes run the same model, at the threads that were asked for, and give their buffers back."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openvino
import pytest
import torch
from torch import Tensor

from ccsegformer.lab.benchmark import runtimes
from ccsegformer.lab.benchmark.model import prepare
from ccsegformer.lab.benchmark.runtimes import Running

IMAGE = {"variant": "b0", "attention": "efficient", "height": 64, "width": 96, "batch": 1}
IMAGE |= {"dtype": "float32", "training": False, "device": "cpu", "classes": 3}


@pytest.fixture(name="openvino")
def openvino_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """OpenVINO, as it was afterwards."""
    create = openvino.CompiledModel.create_infer_request
    monkeypatch.setattr(openvino.CompiledModel, "create_infer_request", create)
    return openvino


def logits(**wanted: Any) -> Tensor:
    return prepare(**{**IMAGE, **wanted}).results()["logits"].clone()


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_transformers_model_is_the_same_in_other_runtimes(runtime: str, openvino: Any) -> None:
    work = prepare(**IMAGE, implementation="transformers", runtime=runtime)
    expected = logits(implementation="transformers")
    torch.testing.assert_close(work.results()["logits"], expected, atol=1e-5, rtol=1e-4)
    assert work.release is not None
    work.release()
    torch.testing.assert_close(work.results()["logits"], expected, atol=1e-5, rtol=1e-4)


def test_our_onnx_file_is_the_same_in_openvino(openvino: Any) -> None:
    found = logits(implementation="ours", runtime="onnx_openvino")
    torch.testing.assert_close(found, logits(implementation="ours"), atol=1e-5, rtol=1e-4)


def test_our_engine_is_opened_as_asked(monkeypatch: pytest.MonkeyPatch, openvino: Any) -> None:
    opened: list[tuple[str, str]] = []

    def open_engine(model: Any, name: str, precision: str) -> Callable[[Tensor], Tensor]:
        opened.append((name, precision))
        return lambda pixels: torch.full((1, 3, 16, 24), float(pixels.shape[3]))

    monkeypatch.setattr("ccsegformer.labelling.engine.open_engine", open_engine)
    work = prepare(**IMAGE | {"dtype": "bfloat16"}, implementation="ours", runtime="openvino")
    assert (work.results()["logits"] == 96).all()
    assert prepare(**IMAGE, implementation="ours", runtime="torch").release is None
    assert opened == [("openvino", "bf16"), ("torch", "fp32")]


def test_our_engine_compiles_before_its_buffers_are_measured(
    monkeypatch: pytest.MonkeyPatch, openvino: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where the engine keeps what it compiles
    order: list[str] = []
    compile_model = openvino.Core.compile_model

    def compiling(*args: Any) -> Any:
        order.append("compiled")
        return compile_model(*args)

    monkeypatch.setattr(openvino.Core, "compile_model", compiling)
    work = prepare(**IMAGE, implementation="ours", runtime="openvino")
    work.on_loaded(lambda: order.append("loaded"))
    found = work.results()["logits"]
    assert order == ["compiled", "loaded"]
    assert work.release is not None
    work.release()
    expected = logits(implementation="ours")
    for each in (found, work.results()["logits"]):
        torch.testing.assert_close(each, expected, atol=1e-5, rtol=1e-4)
    assert order == ["compiled", "loaded"], "a released model need not be compiled again"


def product(openvino: Any, **settings: Any) -> Any:
    """A compiled matrix product."""
    left = openvino.opset15.parameter([256, 256], openvino.Type.f32)
    model = openvino.Model([openvino.opset15.matmul(left, left, False, False)], [left])
    return openvino.Core().compile_model(model, "CPU", settings)


def test_what_runs_is_known_before_it_has_buffers(openvino: Any) -> None:
    running, calls = Running(), []
    compiled = product(openvino, INFERENCE_NUM_THREADS=1)
    running.call_first(lambda: calls.append(list(running.models)))
    assert (running.models, calls) == ([], [])
    compiled([torch.ones(256, 256).numpy()])
    assert running.models == [compiled]
    assert calls == [[compiled]]
    running.release()
    assert (compiled([torch.ones(256, 256).numpy()])[0] == 256).all()


def test_another_number_of_threads_is_refused(openvino: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Running()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(RuntimeError, match="OpenVINO takes 1 threads, not 2"):
        product(openvino, INFERENCE_NUM_THREADS=1).create_infer_request()


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "find_spec", lambda name: name not in ("openvino", "onnx", "onnxscript"))
    assert runtimes.missing() == {"OpenVINO": "openvino", "ONNX Runtime": "onnx"}
    monkeypatch.setattr(runtimes, "find_spec", lambda _: True)
    assert runtimes.missing() == {}
