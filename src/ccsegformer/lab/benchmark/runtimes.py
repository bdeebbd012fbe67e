"""A model in another runtime than plain PyTorch: this package's engine, OpenVINO, ONNX Runtime.

OpenVINO and ONNX Runtime keep the buffers of a run for the next; what is opened here can give them back.
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
"""OpenVINO's names of what it computes in on a CPU."""

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}
"""The engine's names of the same."""

NEEDED = {"OpenVINO": ("openvino",), "ONNX Runtime": ("onnxruntime", "onnx", "onnxscript")}
"""The packages that each takes."""


@dataclass(frozen=True)
class Opened:
    """A model at one size, on one input."""

    run: Callable[[], Tensor]
    """Gives the logits, which the next run may overwrite."""
    release: Callable[[], None] | None = None
    """Gives back the memory that runs keep; None where they keep none."""
    on_loaded: Callable[[Callable[[], None]], None] = lambda _: None
    """Is given what to call in the first run, where all is compiled and the buffers are still to be made."""


def missing() -> dict[str, str]:
    """The first package that is not installed, for each runtime that lacks one."""
    lacking = {name: [each for each in packages if not find_spec(each)] for name, packages in NEEDED.items()}
    return {name: packages[0] for name, packages in lacking.items() if packages}


def open_runtime(model: nn.Module, pixels: Tensor, runtime: str, dtype: str) -> Opened:
    """A model for the size of `pixels`, on PyTorch's number of threads.

    Args:
        model: ours or transformers', float32, in evaluation mode.
        pixels: float32 (batch, bands, H, W).
        runtime: "torch" and "openvino" are this package's engines for our models, and "openvino" is
            OpenVINO's own conversion of transformers'; "onnxruntime" and "onnx_openvino" run an ONNX file.
        dtype: float32 or bfloat16, which only the engines and OpenVINO compute in.
    """
    is_ours = isinstance(model, CrissCrossSegformerForSemanticSegmentation)
    if is_ours and runtime in ("torch", "openvino"):
        return _engine(model, pixels, runtime, PRECISIONS[dtype])
    if runtime == "openvino":
        return _openvino(pixels, HINTS[dtype], program=_export(model, pixels))
    content = _our_onnx(model) if is_ours else _their_onnx(model, pixels)
    if runtime == "onnx_openvino":
        return _openvino(pixels, HINTS[dtype], onnx=content)
    return _onnxruntime(content, pixels)


class Running:
    """OpenVINO's models that run in this process from now on, whoever compiled them.

    An engine compiles on its first call and keeps the model to itself. Here the buffers of a run, which begin
    with a model's request, can be told from its compiling, and given back.
    """

    def __init__(self) -> None:
        import openvino

        self.models: list[Any] = []
        self._first: Callable[[], None] = lambda: None
        create = openvino.CompiledModel.create_infer_request

        def noting(compiled: Any) -> Any:
            threads, wanted = compiled.get_property("INFERENCE_NUM_THREADS"), torch.get_num_threads()
            if threads != wanted:
                raise RuntimeError(f"OpenVINO takes {threads} threads, not {wanted}")
            if compiled not in self.models:
                self.models.append(compiled)
            self._first()
            return create(compiled)

        openvino.CompiledModel.create_infer_request = noting

    def call_first(self, first: Callable[[], None]) -> None:
        """Have `first` called before a request is made."""
        self._first = first

    def release(self) -> None:
        """Give back all buffers but results; the next run makes them again."""
        for compiled in self.models:
            compiled.release_memory()


def compile_openvino(model: Any, hint: str) -> Any:
    """A compiled model for the CPU: the settings that suit one image at a time."""
    import openvino

    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    return openvino.Core().compile_model(model, "CPU", config)


def _engine(model: Any, pixels: Tensor, name: Any, precision: Any) -> Opened:
    from ccsegformer.labelling.engine import open_engine

    if name == "torch":
        engine = open_engine(model, name, precision=precision)
        return Opened(lambda: engine(pixels))
    running = Running()
    engine = open_engine(model, name, precision=precision)
    return Opened(lambda: engine(pixels), running.release, running.call_first)


def _openvino(
    pixels: Tensor, hint: str, program: torch.export.ExportedProgram | None = None, onnx: bytes = b""
) -> Opened:
    import openvino

    model = openvino.convert_model(program) if program else openvino.Core().read_model(onnx)
    model.reshape(list(pixels.shape))  # a fixed size is faster, and at first the exporters' are not
    running = Running()
    request = compile_openvino(model, hint).create_infer_request()

    def run() -> Tensor:
        found = request.infer([pixels.numpy()], share_inputs=True, share_outputs=True)
        return torch.from_numpy(found[0])

    return Opened(run, running.release)


def _onnxruntime(content: bytes, pixels: Tensor) -> Opened:
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


class _Logits(nn.Module):
    """A model that takes and gives tensors alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values=pixel_values).logits


def _export(model: nn.Module, pixels: Tensor) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(_Logits(model).eval(), (pixels,))


def _their_onnx(model: nn.Module, pixels: Tensor) -> bytes:
    exported = torch.onnx.export(
        _export(model, pixels), dynamo=True, input_names=["pixel_values"], verbose=False
    )
    assert exported is not None
    return exported.model_proto.SerializeToString()


def _our_onnx(model: Any) -> bytes:
    from ccsegformer.data.labels import Classes
    from ccsegformer.export import export

    classes = Classes(tuple(f"class {index}" for index in range(model.config.num_labels)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(model, classes, path, "onnx")
        return path.read_bytes()
