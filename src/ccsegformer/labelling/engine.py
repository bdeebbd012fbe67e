"""Engines run a network: normalised pixels in, logits out.

`torch` runs any model, on any device. `openvino` compiles a SegFormer of ours for a CPU, once for each input
shape, where every module is plain. `onnxruntime` runs exported files.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ccsegformer.errors import EngineError, OutOfMemoryError
from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation

EngineName = Literal["openvino", "torch", "onnxruntime"]
Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Engine:
    """A network that is ready to run, and what it computes with.

    Attributes:
        name: of the engine.
        device: where it computes, and where its logits are.
        precision: what it computes in.
        config: of the network: `num_labels`, and as far as it says so `num_channels`, `band_means` and
            `band_stds`.
        run: float32 (batch, bands, H, W) to logits (batch, K, h, w) of any floating dtype.
        digest: of the weights, in hexadecimal.
        note: why it is not the engine that would have been the first choice; "" where it is.
    """

    name: EngineName
    device: torch.device
    precision: Precision
    config: Any
    run: Callable[[Tensor], Tensor]
    digest: Callable[[], str]
    note: str = ""

    @torch.inference_mode()
    def __call__(self, pixels: Tensor, *, image: str | Path = "image") -> Tensor:
        """Float32 logits (batch, K, h, w) of normalised float32 pixels (batch, bands, H, W).

        Raises:
            EngineError: the logits are not finite, which labels would hide; the message calls the pixels
                `image`.
            OutOfMemoryError: the device has too little memory for them.
        """
        try:
            logits = self.run(pixels.to(self.device, torch.float32)).float()
        except torch.OutOfMemoryError as error:
            size = " x ".join(map(str, pixels.shape[2:]))
            raise OutOfMemoryError(
                f"{image}: {size} pixels do not fit into the memory of {self.device}: take a smaller window"
            ) from error
        if not is_finite(logits):
            remedy = (
                "the weights or the image hold values that are no numbers, or far too large"
                if self.precision == "fp32"
                else f"{self.precision} may be too narrow for this model: compute in "
                f"{'bf16 or fp32' if self.precision == 'fp16' else 'fp32'}"
            )
            raise EngineError(f"{image}: the model's logits are not finite; {remedy}")
        return logits

    @property
    def library(self) -> str:
        """The engine's name with its version."""
        return f"{self.name} {version(self.name)}"

    def describe(self) -> str:
        """What computes, where, and in what precision."""
        return f"{self.library}, {self.device.type}, {self.precision}"


def open_engine(
    model: nn.Module | Engine, name: EngineName | None = None, precision: Precision | None = None
) -> Engine:
    """The engine for a model on the device where it is; an engine is given back as it is.

    Weights are computed with as they are now: open an engine anew after training.

    Args:
        model: gives `logits` for `pixel_values`.
        name: None takes OpenVINO for a SegFormer of ours on the CPU, and PyTorch for everything else.
        precision: None is fp32, or that of an engine. fp32 computes in float32 whatever the weights are
            stored in. bf16 and fp16: by autocast in PyTorch; OpenVINO has bf16, on processors with bfloat16
            instructions.

    Raises:
        EngineError: an unknown engine or precision, one that is not installed, cannot run this model or not
            in this precision; or an open engine that is not the one asked for.
    """
    if name is not None and name not in get_args(EngineName):
        raise EngineError(f"engine must be one of {', '.join(get_args(EngineName))}, not {name!r}")
    if precision not in (None, *DTYPES):
        raise EngineError(f"precision must be one of {', '.join(DTYPES)}, not {precision!r}")
    if isinstance(model, Engine):
        asked = (name or model.name, precision or model.precision)
        if asked != (model.name, model.precision):
            raise EngineError(f"{model.name} in {model.precision} is open, not {asked[0]} in {asked[1]}")
        return model
    precision = precision or "fp32"
    if name == "torch":
        return open_torch_engine(model, precision)
    if name == "onnxruntime":
        raise EngineError("onnxruntime runs exported files: write one by `ccsegformer export`, and load that")
    ours = isinstance(model, CrissCrossSegformerForSemanticSegmentation)
    if name is None and not (ours and next(model.parameters()).device.type == "cpu"):
        return open_torch_engine(model, precision)
    try:
        return _openvino_engine(model, precision)
    except EngineError as error:
        if name == "openvino":
            raise
        return open_torch_engine(model, precision, note=str(error))


def open_exported(path: str | Path) -> tuple[Engine, dict[str, Any]]:
    """An engine for an ONNX file that `ccsegformer export` wrote, on the CPU, and the file's metadata.

    Raises:
        EngineError: the file cannot be read or does not describe itself, or ONNX Runtime is not installed.
    """
    if not is_installed("onnxruntime"):
        raise EngineError(f"{path}: takes onnxruntime, which is not installed: pip install onnxruntime")
    from ccsegformer.labelling import _onnxruntime

    return _onnxruntime.open_file(Path(path))


def is_finite(logits: Tensor | NDArray[np.float32]) -> bool:
    """Whether all logits are numbers. On the CPU by NumPy, whose one thread waits for no other."""
    if isinstance(logits, Tensor):
        if logits.device.type != "cpu":
            return bool(torch.isfinite(logits.sum()))
        logits = logits.numpy()
    with np.errstate(all="ignore"):
        return bool(np.isfinite(logits.sum()))


def is_installed(name: EngineName) -> bool:
    """Whether an engine's library is there."""
    return find_spec(name) is not None


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each of its modules back into the mode it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def in_float32(model: nn.Module) -> nn.Module:
    """The model, or where some of its weights are stored otherwise a copy that computes in float32."""
    if all(weight.dtype == torch.float32 for weight in model.parameters() if weight.is_floating_point()):
        return model
    return copy.deepcopy(model).float()


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _openvino_engine(model: nn.Module, precision: Precision) -> Engine:
    if not is_installed("openvino"):
        raise EngineError("openvino is not installed: pip install openvino")
    from ccsegformer.labelling import _openvino

    return _openvino.open_engine(model, precision)


def open_torch_engine(model: nn.Module, precision: Precision, note: str = "") -> Engine:
    """Eager PyTorch, where the model is."""
    device = next(model.parameters()).device
    model = in_float32(model)
    dtype = DTYPES[precision]

    def run(pixels: Tensor) -> Tensor:
        with evaluation_mode(model), torch.autocast(device.type, dtype, enabled=precision != "fp32"):
            logits: Tensor = model(pixel_values=pixels).logits
        return logits

    config = getattr(model, "config", None)
    return Engine("torch", device, precision, config, run, lambda: weights_digest(model), note)
