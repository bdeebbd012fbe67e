"""A SegFormer of ours in OpenVINO, on the CPU: a graph is compiled for each input shape, and kept on disk."""

import hashlib
import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccsegformer import __version__
from ccsegformer.errors import EngineError, OutputError
from ccsegformer.files import write_atomically
from ccsegformer.labelling import _graph
from ccsegformer.labelling._graph import NotPlain, build
from ccsegformer.labelling.engine import (
    Engine,
    Precision,
    evaluation_mode,
    in_float32,
    is_finite,
    open_torch_engine,
    weights_digest,
)
from ccsegformer.labelling.preprocess import preprocessing_of
from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation
from ccsegformer.models.one_label import class_count

ATTEMPTS = 3
"""How often a graph is compiled before NaN is taken for the model's own."""
CHECKED_SIZE = (64, 96)
TOLERANCES = {"fp32": 1e-3, "bf16": 0.2}
"""Largest difference from PyTorch, as a share of the largest logit; rounding stays below a tenth of it."""
SHAPES_IN_MEMORY = 4
"""Most compiled graphs in memory at a time; each has a copy of the weights."""
SHAPES_ON_DISK = 8
"""Most graphs that one process keeps for a model: photographs of every size would fill the disk."""
BYTES_ON_DISK = 2 * 2**30
"""Most bytes kept for all models; the graphs used longest ago are removed."""


def open_model(model: Any, precision: Precision) -> Engine:
    """Open an engine for a model; see `engine.open_engine`.

    Raises:
        EngineError: OpenVINO does not suit the model, its device or the precision.
    """
    if not isinstance(model, CrissCrossSegformerForSemanticSegmentation):
        raise EngineError(f"openvino runs this package's SegFormers only, not a {type(model).__name__}")
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise EngineError(f"openvino runs on the CPU here, and the model is on {device.type}")
    core = _core()
    compiled = _CompiledModel(core, in_float32(model), precision)
    try:
        _check(compiled)
    except NotPlain as error:
        names = {module: name for name, module in compiled.model.named_modules()}
        name = names.get(error.module) or "the model"
        raise EngineError(f"openvino runs plain SegFormers, and {name} {error}") from error
    return Engine(
        "openvino",
        device,
        precision,
        compiled.run,
        lambda: compiled.digest,
        preprocessing_of(model.config),
        class_count(model.config.num_labels),
        model.config,
    )


def open_graph(path: Path, precision: Precision) -> tuple[openvino.Model, Callable[[int, Tensor], Tensor]]:
    """Read a graph from an ONNX or XML file.

    Returns:
        The graph, and a function that computes output number n of it for pixels (batch, bands, H, W).

    Raises:
        EngineError: the processor does not have the precision.
    """
    core = _core()
    settings, graph = _settings(core, precision), core.read_model(path)
    requests: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def run(output: int, pixels: Tensor) -> Tensor:
        shape = tuple(pixels.shape)
        if shape not in requests:
            sized = graph.clone()
            if sized.inputs[0].partial_shape.is_dynamic:
                sized.reshape(list(shape))
            _remember(requests, shape, core.compile_model(sized, "CPU", settings).create_infer_request())
        requests.move_to_end(shape)
        return torch.from_numpy(_infer(requests[shape], pixels.contiguous().numpy(), output))

    return graph, run


def cache_folder() -> Path:
    """Where compiled graphs are kept: `ccsegformer/openvino` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ccsegformer" / "openvino"


@cache
def _core() -> openvino.Core:
    """The one core of this process; with several, what `_begin` guards against is more frequent."""
    return openvino.Core()


class _CompiledModel:
    """The graphs of one model by input shape, the latest few in memory."""

    def __init__(self, core: openvino.Core, model: Any, precision: Precision) -> None:
        self.core, self.model = core, model
        self.precision, self.settings = precision, _settings(core, precision)
        self.digest = weights_digest(model)
        self.requests: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self.kept = 0

    def run(self, pixels: Tensor) -> Tensor:
        """Logits (batch, K, h, w); PyTorch's, which take longer, where the graph's are not finite.

        A graph gives NaN where scores of criss-cross attention lie too far apart (`_graph._attend_along`).
        """
        logits = self.run_graph(pixels)
        return logits if is_finite(logits) else open_torch_engine(self.model, self.precision).run(pixels)

    def run_graph(self, pixels: Tensor) -> Tensor:
        """Logits (batch, K, h, w) as the graph gives them."""
        shape = tuple(pixels.shape)
        request = self.requests.pop(shape, None)
        array = pixels.contiguous().numpy()
        logits = None if request is None else _infer(request, array)
        if logits is None:
            request, logits = self._begin(shape, array)
        _remember(self.requests, shape, request)
        return torch.from_numpy(logits)

    def _begin(self, shape: tuple[int, ...], array: NDArray[np.float32]) -> tuple[Any, NDArray[np.float32]]:
        """A request for a new shape, and its first logits.

        On a busy machine a graph has been seen to be compiled into one that gives NaN for everything, and
        from the same graph, compiled again, one that is right. So NaN is believed only from `ATTEMPTS`.
        """
        if weights_digest(self.model) != self.digest:
            raise EngineError("the model's weights have changed since its engine was opened: open it anew")
        path = cache_folder() / f"{self._key(shape)}.blob"
        for attempt in range(ATTEMPTS):
            compiled = None if attempt else self._load(path)
            is_new = compiled is None
            if compiled is None:
                with evaluation_mode(self.model):
                    graph = build(self.model, shape)
                compiled = self.core.compile_model(graph, "CPU", self.settings)
            request = compiled.create_infer_request()
            logits = _infer(request, array)
            if is_finite(logits):
                break
        if is_new and is_finite(logits) and self.kept < SHAPES_ON_DISK:
            self.kept += 1
            _keep(path, compiled)
        return request, logits

    def _load(self, path: Path) -> openvino.CompiledModel | None:
        try:
            compiled = self.core.import_model(path.read_bytes(), "CPU", self.settings)
            path.touch()
            return compiled
        except (OSError, RuntimeError):  # none yet, or one that this OpenVINO cannot read
            return None

    def _key(self, shape: tuple[int, ...]) -> str:
        """Return a digest of everything that a compiled graph depends on."""
        processor = [
            self.core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")
        ]
        facts = (self.digest, self.model.config.to_json_string(), shape, sorted(self.settings.items()))
        code = Path(_graph.__file__).read_bytes(), _graph.LANDMARKS
        versions = (__version__, openvino.get_version(), processor, sys.platform, code)
        return hashlib.sha256(repr((facts, versions)).encode()).hexdigest()


@torch.inference_mode()
def _check(compiled: "_CompiledModel") -> None:
    """Hold a small image's logits to PyTorch's: what a compiler gets wrong would be silent otherwise."""
    shape = (1, compiled.model.config.num_channels, *CHECKED_SIZE)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found, expected = compiled.run_graph(pixels), open_torch_engine(compiled.model, "fp32").run(pixels)
    compiled.requests.clear()
    if not is_finite(expected):
        return  # every call reports that itself
    if not is_finite(found):
        raise EngineError("openvino's logits are not finite, unlike PyTorch's")
    difference = (found - expected).abs().max() / expected.abs().max()
    if difference > TOLERANCES[compiled.precision]:  # NaN, where both are 0, is no difference
        raise EngineError(f"openvino's logits differ from PyTorch's by {difference:.1e} of the largest")


def _settings(core: openvino.Core, precision: Precision) -> dict[str, Any]:
    """Compile for latency, on PyTorch's number of threads."""
    if precision == "fp16":
        raise EngineError("openvino computes in fp32 or bf16 on a CPU, not in fp16")
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise EngineError("this processor has no bfloat16 instructions: compute in fp32")
    threads = torch.get_num_threads()
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": threads,
        # OpenVINO pins threads from the first core on: two processes of one thread each would share it.
        "ENABLE_CPU_PINNING": threads >= (os.cpu_count() or 1),
    }


def _remember(requests: OrderedDict[tuple[int, ...], Any], shape: tuple[int, ...], request: Any) -> None:
    """Keep a request, and forget the one used longest ago beyond `SHAPES_IN_MEMORY`."""
    requests[shape] = request
    if len(requests) > SHAPES_IN_MEMORY:
        requests.popitem(last=False)


def _infer(request: Any, array: NDArray[np.float32], output: int = 0) -> NDArray[np.float32]:
    """Copy the result: the request overwrites its own memory in the next call."""
    request.infer({0: array}, share_inputs=True)
    return np.array(request.get_output_tensor(output).data)


def _keep(path: Path, compiled: openvino.CompiledModel) -> None:
    """Write a compiled graph, and remove the oldest ones above `BYTES_ON_DISK`. A full disk is no failure."""
    try:
        write_atomically(path, bytes(compiled.export_model().getvalue()))
        kept = sorted(path.parent.glob("*.blob"), key=lambda each: each.stat().st_mtime, reverse=True)
        total = 0
        for each in kept:
            total += each.stat().st_size
            if total > BYTES_ON_DISK:
                each.unlink(missing_ok=True)
    except (OSError, OutputError, RuntimeError):
        pass
