"""Engines run a network: normalised pixels in, logits out.

`torch` runs any model, on any device. `openvino` compiles a SegFormer of this package for a CPU, once for
each input shape, as long as all its modules are plain; it also runs files. `onnxruntime` runs ONNX files.
"""

import copy
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ccsegformer.data.pixels import MINIMUM_SIDE
from ccsegformer.errors import CCSegformerError, EngineError, OutOfMemoryError
from ccsegformer.labelling.preprocess import Preprocessing, preprocessing_of
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation
from ccsegformer.models.one_label import class_count, with_background

EngineName = Literal["openvino", "torch", "onnxruntime"]
Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIDE_STEP = 32
"""Sides of an unknown network's input are padded to multiples of this: encoders halve them five times."""

PLAIN = (bool, int, float, str, tuple, list, type(None))
"""Types of a module's attributes that count in its digest."""
ANY_SIZE = ("segformer", "ccsegformer")
"""Model types that take images of any size."""

Segmenter = nn.Module | Callable[[Tensor], Any]
"""Maps normalised pixels (batch, bands, H, W) to logits (batch, K, h, w), or to an object that holds them.

A network of one label gives (batch, 1, h, w): the label's logit, above 0 where it is more likely than not."""


@dataclass(frozen=True)
class Engine:
    """A network that is ready to run.

    Attributes:
        name: name of the engine.
        device: where it computes, and where its logits are.
        precision: number format that it computes in.
        run: maps float32 (batch, bands, H, W) to logits (batch, K, h, w) of any floating dtype, or to the
            single logit (batch, 1, h, w) of a network of one label.
        digest: returns a hexadecimal digest of what the logits depend on; None if it cannot be known, as for
            functions and for modules with hooks.
        preprocessing: input that the network expects.
        num_labels: number of classes K, two for one label; None if unknown before the first call.
        config: configuration of a SegFormer of this package; None for other networks.
        side_step: sides of the input must be multiples of this.
        fixed_size: the only height and width that the network takes, if it takes only one.
        band_names: names of the bands that the network takes, in its order; () if unknown.
        note: why this is not the engine of first choice; "" if it is.
    """

    name: EngineName
    device: torch.device
    precision: Precision
    run: Callable[[Tensor], Tensor]
    digest: Callable[[], str] | None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    num_labels: int | None = None
    config: CrissCrossSegformerConfig | None = None
    side_step: int = 1
    fixed_size: tuple[int, int] | None = None
    band_names: tuple[str, ...] = ()
    note: str = ""

    @property
    def scene_bands(self) -> tuple[int, ...]:
        """Numbers, from 1, of the bands of scenes that the network was trained on; () if unknown, or all."""
        return tuple(getattr(self.config, "scene_bands", None) or ())

    @torch.inference_mode()
    def __call__(self, pixels: Tensor, *, image: str | Path = "image") -> Tensor:
        """Compute float32 logits (batch, K, h, w) of normalised float32 pixels (batch, bands, H, W).

        A single logit x becomes the two logits (0, x) of background and the label.

        Raises:
            EngineError: the logits are not finite or not of that shape; the message calls the pixels `image`.
            OutOfMemoryError: they do not fit into the device's memory.
        """
        try:
            logits = self.run(pixels.to(self.device, torch.float32)).float()
        except torch.OutOfMemoryError as error:
            size = " x ".join(map(str, pixels.shape[2:]))
            raise OutOfMemoryError(
                f"{image}: {size} pixels do not fit into the memory of {self.device}: take a smaller window"
            ) from error
        except CCSegformerError:
            raise
        except Exception as error:  # whatever the network or its library raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise EngineError(f"{image}: the model fails on {tuple(pixels.shape)}: {reason}") from error
        if logits.dim() != 4 or len(logits) != len(pixels) or not logits.shape[1]:
            raise EngineError(
                f"{image}: the model gives {tuple(logits.shape)} for {tuple(pixels.shape)}, not logits "
                "(batch, K, h, w)"
            )
        found, logits = logits.shape[1], with_background(logits)
        if self.num_labels not in (None, logits.shape[1]):
            raise EngineError(
                f"{image}: {found} logit{'s' * (found > 1)} a pixel for {self.num_labels} classes"
            )
        if not is_finite(logits):
            remedy = (
                "the weights or the image hold NaN, infinite or far too large values"
                if self.precision == "fp32"
                else f"{self.precision} may be too narrow for this model: compute in "
                f"{'bf16 or fp32' if self.precision == 'fp16' else 'fp32'}"
            )
            raise EngineError(f"{image}: the model's logits are not finite; {remedy}")
        return logits

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size to which pixels of this height and width must be padded.

        Raises:
            EngineError: the network takes one size only, and these pixels are larger.
        """
        if self.fixed_size is not None:
            if height > self.fixed_size[0] or width > self.fixed_size[1]:
                wanted = " x ".join(map(str, self.fixed_size))
                raise EngineError(f"the model takes images of {wanted} pixels only, not {height} x {width}")
            return self.fixed_size
        step = self.side_step
        height, width = (max(MINIMUM_SIDE, -(-side // step) * step) for side in (height, width))
        return height, width

    def with_preprocessing(self, preprocessing: Preprocessing) -> "Engine":
        """Return the engine with another preprocessing.

        Raises:
            EngineError: it has another number of bands than the network.
        """
        wanted = self.preprocessing.channels
        if wanted not in (None, preprocessing.channels):
            raise EngineError(f"mean and std of {preprocessing.channels} bands for a model of {wanted}")
        return replace(self, preprocessing=preprocessing)

    @property
    def library(self) -> str:
        """The engine's name and version."""
        try:
            return f"{self.name} {version(self.name)}"
        except PackageNotFoundError:  # installed under another name, such as onnxruntime-gpu
            return f"{self.name} {import_module(self.name).__version__}"

    def describe(self) -> str:
        """Say what computes, where, and in what precision."""
        return f"{self.library}, {self.device.type}, {self.precision}"


def open_engine(
    model: Segmenter | Engine, name: EngineName | None = None, precision: Precision | None = None
) -> Engine:
    """Open the engine for a model, on the device where the model is; an engine is returned unchanged.

    The weights are read now: open a new engine after training.

    Args:
        model: any segmenter: a model of this package, one of transformers' models for semantic segmentation,
            another module, or a function. The result may be a tensor, have an attribute `logits`, or be a
            mapping with the key "logits" or "out", as torchvision's.
        name: None takes OpenVINO for a SegFormer of this package on the CPU, and PyTorch for everything else.
        precision: None is fp32, or that of an open engine. fp32 computes in float32 whatever the weights are
            stored in. bf16 and fp16: by autocast in PyTorch; OpenVINO has bf16 on processors with bfloat16
            instructions.

    Raises:
        EngineError: an unknown engine or precision, one that is not installed, cannot run this model or not
            in this precision; or an open engine other than the one asked for.
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
    if name == "onnxruntime":
        raise EngineError("onnxruntime runs ONNX files: write one with `ccsegformer export`, and load that")
    if not isinstance(model, nn.Module):
        return _open_function(model, name, precision)
    ours = isinstance(model, CrissCrossSegformerForSemanticSegmentation)
    if name == "torch" or (name is None and not (ours and device_of(model).type == "cpu")):
        return open_torch_engine(model, precision)
    try:
        return _openvino_engine(model, precision)
    except EngineError as error:
        if name == "openvino":
            raise
        return open_torch_engine(model, precision, note=str(error))


def open_torch_engine(model: nn.Module, precision: Precision, note: str = "") -> Engine:
    """Run a module in eager PyTorch, where it is."""
    device = device_of(model)
    model = in_float32(model)
    takes_keyword = isinstance(model, PreTrainedModel)
    dtype = DTYPES[precision]

    def run(pixels: Tensor) -> Tensor:
        with evaluation_mode(model), torch.autocast(device.type, dtype, enabled=precision != "fp32"):
            return logits_of(model(pixel_values=pixels) if takes_keyword else model(pixels))

    config = getattr(model, "config", None)
    ours = isinstance(config, CrissCrossSegformerConfig)
    return Engine(
        "torch",
        device,
        precision,
        run,
        None if _has_hooks(model) else lambda: model_digest(model),
        preprocessing_of(config),
        class_count(getattr(config, "num_labels", None)),
        config if ours else None,
        side_step=1 if getattr(config, "model_type", None) in ANY_SIZE else SIDE_STEP,
        note=note,
    )


def logits_of(output: Any) -> Tensor:
    """Find the logits in what a segmenter returns.

    Raises:
        EngineError: there are none.
    """
    found = getattr(output, "logits", output)
    if isinstance(found, Mapping):
        found = found.get("logits", found.get("out"))
    if not isinstance(found, Tensor):
        raise EngineError(
            f"the model returns {type(output).__name__}, not logits as a tensor or under `logits` or `out`"
        )
    return found


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a module's first parameter or buffer, or the CPU."""
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def is_finite(logits: Tensor | NDArray[np.float32]) -> bool:
    """Check that all logits are finite; on the CPU with NumPy, which uses a single thread."""
    if isinstance(logits, Tensor):
        if logits.device.type != "cpu":
            return bool(torch.isfinite(logits.sum()))
        logits = logits.numpy()
    with np.errstate(all="ignore"):
        return bool(np.isfinite(logits.sum()))


def is_installed(name: EngineName) -> bool:
    """Check that an engine's library is installed."""
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
    """Return the model, or a float32 copy if some of its weights are stored otherwise."""
    if all(weight.dtype == torch.float32 for weight in model.parameters() if weight.is_floating_point()):
        return model
    return copy.deepcopy(model).float()


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's parameters and buffers with their names."""
    digest = hashlib.sha256()
    for name, value in sorted({**model.state_dict(), **dict(model.named_buffers())}.items()):
        if not isinstance(value, Tensor) or value.is_quantized:
            digest.update(f"{name} {value!r}".encode())
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights, configuration, code and plain attributes."""
    digest = hashlib.sha256(weights_digest(model).encode())
    config = getattr(model, "config", None)
    digest.update((config.to_json_string() if isinstance(config, PretrainedConfig) else "").encode())
    for name, module in model.named_modules():
        kind: Any = type(module)
        plain = {key: value for key, value in vars(module).items() if isinstance(value, PLAIN)}
        plain.pop("training", None)
        digest.update(f"{name} {_source(kind)} {sorted(plain.items())!r}".encode())
    return digest.hexdigest()


@cache
def _source(kind: Any) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed in a console, or compiled
        return kind.__qualname__


def _has_hooks(model: nn.Module) -> bool:
    """Check for code that no digest sees: forward hooks and replaced methods."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        for module in model.modules()
    )


def _open_function(
    function: Callable[[Tensor], Any], name: EngineName | None, precision: Precision
) -> Engine:
    """Call a function as it is: it chooses its own device and precision."""
    if not callable(function):
        raise EngineError(f"{type(function).__name__}: not a model, nor a function from pixels to logits")
    if name == "openvino" or precision != "fp32":
        raise EngineError("a function chooses its engine and precision itself: leave them out")
    return Engine(
        "torch",
        torch.device("cpu"),
        precision,
        lambda pixels: logits_of(function(pixels)),
        digest=None,
        preprocessing=Preprocessing(channels=None),
        side_step=SIDE_STEP,
    )


def _openvino_engine(model: nn.Module, precision: Precision) -> Engine:
    if not is_installed("openvino"):
        raise EngineError("openvino is not installed: pip install openvino")
    from ccsegformer.labelling import _openvino

    return _openvino.open_model(model, precision)
