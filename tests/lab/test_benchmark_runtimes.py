"""Other runtimes give the same results, use the requested threads and free their buffers."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openvino
import pytest
import torch
from torch import Tensor

from ccsegformer.lab.benchmark.model import prepare
from ccsegformer.lab.benchmark.runtimes import Running, missing_packages

IMAGE = {"variant": "b0", "attention": "efficient", "height": 64, "width": 96, "batch": 1}
IMAGE |= {"dtype": "float32", "training": False, "device": "cpu", "classes": 3}


@pytest.fixture(name="openvino")
def openvino_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Restore OpenVINO after the test, since `Running` changes it."""
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


def test_our_engine_keeps_no_memory_in_pytorch_and_computes_in_the_requested_precision() -> None:
    exact = logits(implementation="ours")
    work = prepare(**IMAGE, implementation="ours", runtime="torch")
    assert work.release is None
    torch.testing.assert_close(work.results()["logits"], exact, atol=1e-5, rtol=1e-4)
    rounded = logits(implementation="ours", runtime="torch", dtype="bfloat16").float()
    error = (rounded - exact).abs().max() / exact.abs().max()
    assert 1e-4 < error < 5e-2


def test_our_engine_compiles_before_its_buffers_are_measured(
    monkeypatch: pytest.MonkeyPatch, openvino: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # the engine caches compiled models there
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
    assert order == ["compiled", "loaded"], "a released model must not be compiled again"


def product(openvino: Any, **settings: Any) -> Any:
    """Compile a matrix product."""
    left = openvino.opset15.parameter([256, 256], openvino.Type.f32)
    model = openvino.Model([openvino.opset15.matmul(left, left, False, False)], [left])
    return openvino.Core().compile_model(model, "CPU", settings)


def test_a_model_is_recorded_before_its_buffers_exist(openvino: Any) -> None:
    running, calls = Running(), []
    compiled = product(openvino, INFERENCE_NUM_THREADS=1)
    running.call_first(lambda: calls.append(list(running.models)))
    assert (running.models, calls) == ([], [])
    compiled([torch.ones(256, 256).numpy()])
    assert running.models == [compiled]
    assert calls == [[compiled]]
    running.release()
    assert (compiled([torch.ones(256, 256).numpy()])[0] == 256).all()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_wrong_number_of_threads_is_an_error(openvino: Any, two_threads: None) -> None:
    Running()
    with pytest.raises(RuntimeError, match="1 threads instead of 2"):
        product(openvino, INFERENCE_NUM_THREADS=1).create_infer_request()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_packages() == {}
    for name in ("openvino", "onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    assert missing_packages() == {"OpenVINO": "openvino", "ONNX Runtime": "onnx"}
