"""Run a model in this package's engine, in OpenVINO or in ONNX Runtime instead of plain PyTorch.

OpenVINO and ONNX Runtime keep a run's buffers for the next run; models opened here can free them.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation

HINTS = {"float32": "f32", "bfloat16": "bf16"}
"""OpenVINO's names of the dtypes that it computes in on a CPU."""

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}
"""The engine's names of the same dtypes."""

RUNTIME_PACKAGES = {"OpenVINO": ("openvino",), "ONNX Runtime": ("onnxruntime", "onnx", "onnxscript")}
"""Packages that each runtime needs."""


@dataclass(frozen=True)
class Opened:
    """Model opened for one input."""

    run: Callable[[], Tensor]
    """Returns the logits, which the next run may overwrite."""
    release: Callable[[], None] | None = None
    """Frees the memory that runs keep; None if they keep none."""
    on_loaded: Callable[[Callable[[], None]], None] = lambda _: None
    """Takes a callback to call during the first run, after compilation and before buffers are allocated."""


def missing_packages() -> dict[str, str]:
    """Return the first package that is not installed, for each runtime that lacks one."""
    absent = {
        name: [each for each in packages if not find_spec(each)]
        for name, packages in RUNTIME_PACKAGES.items()
    }
    return {name: packages[0] for name, packages in absent.items() if packages}


def open_runtime(model: nn.Module, pixels: Tensor, runtime: str, dtype: str) -> Opened:
    """Open a model for the size of `pixels`, with PyTorch's number of threads.

    Args:
        model: Our or transformers' model, in float32 and evaluation mode.
        pixels: Input, float32 (batch, bands, H, W).
        runtime: "torch" or "openvino" for this package's engines with our models, "openvino" for OpenVINO's
            own conversion of transformers' model, "onnxruntime" or "onnx_openvino" for an ONNX file.
        dtype: "float32", or "bfloat16" for the engines and OpenVINO.
    """
    is_ours = isinstance(model, CrissCrossSegformerForSemanticSegmentation)
    if is_ours and runtime in ("torch", "openvino"):
        return _open_engine(model, pixels, runtime, PRECISIONS[dtype])
    if runtime == "openvino":
        return _open_openvino(pixels, HINTS[dtype], program=_trace_transformers(model, pixels))
    content = _own_onnx(model) if is_ours else _transformers_onnx(model, pixels)
    if runtime == "onnx_openvino":
        return _open_openvino(pixels, HINTS[dtype], onnx=content)
    return _open_onnxruntime(content, pixels)


class Running:
    """Record of the OpenVINO models that start running in this process after its creation.

    An engine compiles its model on the first call and does not expose it. Buffers are allocated when a
    model's request is created, so intercepting that call separates them from compilation.
    """

    def __init__(self) -> None:
        import openvino

        self.models: list[Any] = []
        self._first: Callable[[], None] = lambda: None
        create = openvino.CompiledModel.create_infer_request

        def noting(compiled: Any) -> Any:
            threads, wanted = compiled.get_property("INFERENCE_NUM_THREADS"), torch.get_num_threads()
            if threads != wanted:
                raise RuntimeError(f"OpenVINO uses {threads} threads instead of {wanted}")
            if compiled not in self.models:
                self.models.append(compiled)
            self._first()
            return create(compiled)

        openvino.CompiledModel.create_infer_request = noting

    def call_first(self, first: Callable[[], None]) -> None:
        """Call `first` whenever a request is about to be created."""
        self._first = first

    def release(self) -> None:
        """Free all buffers except results; the next run allocates them again."""
        for compiled in self.models:
            compiled.release_memory()


def compile_openvino(model: Any, hint: str) -> Any:
    """Compile a model for the CPU, with settings for one image at a time."""
    import openvino

    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    return openvino.Core().compile_model(model, "CPU", config)


def _open_engine(model: Any, pixels: Tensor, name: Any, precision: Any) -> Opened:
    from ccsegformer.labelling.engine import open_engine

    if name == "torch":
        engine = open_engine(model, name, precision=precision)
        return Opened(lambda: engine(pixels))
    running = Running()
    engine = open_engine(model, name, precision=precision)
    return Opened(lambda: engine(pixels), running.release, running.call_first)


def _open_openvino(
    pixels: Tensor, hint: str, program: torch.export.ExportedProgram | None = None, onnx: bytes = b""
) -> Opened:
    import openvino

    model = openvino.convert_model(program) if program else openvino.Core().read_model(onnx)
    model.reshape(list(pixels.shape))  # fixed shapes are faster
    running = Running()
    request = compile_openvino(model, hint).create_infer_request()

    def run() -> Tensor:
        found = request.infer([pixels.numpy()], share_inputs=True, share_outputs=True)
        return torch.from_numpy(found[0])

    return Opened(run, running.release)


def _open_onnxruntime(content: bytes, pixels: Tensor) -> Opened:
    import onnxruntime

    def open_session() -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    sessions = [open_session()]

    def run() -> Tensor:
        if not sessions:
            sessions.append(open_session())
        return torch.from_numpy(sessions[0].run(None, {"pixel_values": pixels.numpy()})[0])

    return Opened(run, sessions.clear)


class _TransformersLogits(nn.Module):
    """transformers' model as a map from a tensor to a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values=pixel_values).logits


def _trace_transformers(model: nn.Module, pixels: Tensor) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(_TransformersLogits(model).eval(), (pixels,))


def _transformers_onnx(model: nn.Module, pixels: Tensor) -> bytes:
    exported = torch.onnx.export(
        _trace_transformers(model, pixels), dynamo=True, input_names=["pixel_values"], verbose=False
    )
    assert exported is not None
    return exported.model_proto.SerializeToString()


def _own_onnx(model: Any) -> bytes:
    from ccsegformer.data.labels import Classes
    from ccsegformer.export import export

    classes = Classes(tuple(f"class {index}" for index in range(model.config.num_labels)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(model, classes, path, "onnx")
        return path.read_bytes()
