"""Export a trained model to one file that runs without transformers: ONNX or PyTorch's pt2."""

import copy
import io
import json
import math
import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ccsegformer import __version__
from ccsegformer.data.labels import Classes
from ccsegformer.data.pixels import IMAGE_MEAN, IMAGE_STD
from ccsegformer.errors import ExportError, OutputError, optional_imports
from ccsegformer.files import write_atomically
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation
from ccsegformer.models.one_label import with_background
from ccsegformer.ops.explicit import explicit_criss_cross_attention

Format = Literal["onnx", "pt2"]

LARGEST_ONNX = 2**31  # bytes; the limit of protobuf
EXPORT_TOLERANCE = 1e-3  # share of the largest logit; rounding errors stay below a hundredth of it


def export(
    model: CrissCrossSegformerForSemanticSegmentation,
    classes: Classes,
    path: str | Path,
    format: Format,
    *,
    overwrite: bool = False,
) -> float | None:
    """Export a model to one file, after checking the file's logits against PyTorch's.

    The file maps `pixel_values`, normalised float32 (batch, bands, H, W), to `logits`, float32
    (batch, K, ceil(H / 4), ceil(W / 4)). Batch, height and width are dynamic; both sides must be at least
    `smallest_side`. The entries of `describe` are stored in the file: as ONNX metadata properties, or as
    pt2 extra files.

    Args:
        model: Model to export. A float32 copy on the CPU, in evaluation mode, is exported.
        classes: One class for each output channel of the model; two for a model of one label, whose file
            gives the logits of background, 0, and of the label.
        path: File to write.
        format: "onnx" (opset 20; needs the `export` extra) or "pt2" (`torch.export`).
        overwrite: Replace an existing file.

    Returns:
        Largest difference from PyTorch's logits, as a share of the largest logit, over three inputs whose
        sizes and batches differ from those used for tracing. None if an ONNX file cannot be checked because
        ONNX Runtime is not installed.

    Raises:
        ExportError: The format is unknown, the model is too large for ONNX, its logits are not finite, or
            the file disagrees with PyTorch. No file is written.
        MissingExtraError: onnx or onnxscript is not installed.
        OutputError: `path` exists and `overwrite` is not set, or `path` cannot be written.
    """
    path = Path(path)
    check_exportable(model, path, format, overwrite)
    network, smallest = LogitsModel(model), smallest_side(model.config)
    samples = run_on(network, _inputs(network.bands, smallest))
    check_finite(path, samples)
    content = _serialize(_trace(network, smallest), format, describe(model.config, classes))
    difference = compare_with_pytorch(path, content, format, samples)
    write_atomically(path, content)
    return difference


def smallest_side(config: CrissCrossSegformerConfig) -> int:
    """Return the smallest height and width that an exported model accepts: 64 for B0 to B5.

    A traced program is valid only if every feature map, including the reduced keys, is larger than 1 x 1.
    """
    strides = [math.prod(config.strides[: stage + 1]) for stage in range(len(config.strides))]
    return 2 * max(stride * ratio for stride, ratio in zip(strides, config.sr_ratios, strict=True))


def describe(config: CrissCrossSegformerConfig, classes: Classes) -> dict[str, str]:
    """Return the metadata stored in an exported file, as JSON strings: all that labelling images needs."""
    own = config.band_means is not None
    entries = {
        "class_names": classes.names,
        "palette": classes.palette,
        "ignore_index": classes.ignore_index,
        "num_channels": config.num_channels,
        # pixel_values = (values * rescale_factor - image_mean) / image_std
        "rescale_factor": 1 if own else 1 / 255,
        "image_mean": config.band_means if own else IMAGE_MEAN,
        "image_std": config.band_stds if own else IMAGE_STD,
        "smallest_side": smallest_side(config),
        "attention": config.stage_attention,
        "recurrence": config.recurrence,
        "projection": config.projection,
        "lepe": config.lepe,
        "config": json.loads(config.to_json_string()),  # what `save_pretrained` writes
        "ccsegformer_version": __version__,
    }
    return {name: json.dumps(value) for name, value in entries.items()}


class LogitsModel(nn.Module):
    """Float32 CPU copy of a model that maps a tensor to a tensor."""

    def __init__(self, model: CrissCrossSegformerForSemanticSegmentation) -> None:
        super().__init__()
        self.bands = model.config.num_channels
        self.model = copy.deepcopy(model).to("cpu", torch.float32)
        self.requires_grad_(False).eval()

    def forward(self, pixel_values: Tensor) -> Tensor:
        return with_background(self.model(pixel_values).logits)


def _trace(network: LogitsModel, smallest: int) -> torch.export.ExportedProgram:
    """Trace a network with dynamic batch, height and width, using only PyTorch's own operators."""
    sizes = {
        0: torch.export.Dim("batch", min=1),
        2: torch.export.Dim("height", min=smallest),
        3: torch.export.Dim("width", min=smallest),
    }
    # Sizes that are 1 or equal to each other would be specialised to constants.
    pixels = torch.zeros(2, network.bands, 3 * smallest // 2, 2 * smallest)
    return plain(torch.export.export(network, (pixels,), dynamic_shapes={"pixel_values": sizes}))


def plain(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Replace this package's operators in a traced program by PyTorch's own, and local paths by nothing."""
    program = program.run_decompositions(
        {torch.ops.ccsegformer.flash_criss_cross.default: explicit_criss_cross_attention}
    )
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # contains paths of this machine
    return program


def _serialize(program: torch.export.ExportedProgram, format: Format, metadata: dict[str, str]) -> bytes:
    if format == "onnx":
        from ccsegformer.export._onnx import to_onnx

        return to_onnx(program, metadata)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=metadata)
    return buffer.getvalue()


def _load_exported(content: bytes, format: Format) -> Callable[[Tensor], Tensor]:
    """Return a function that maps a file's input to its output."""
    if format == "pt2":
        return torch.export.load(io.BytesIO(content)).module()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    [image] = session.get_inputs()
    return lambda pixels: torch.from_numpy(session.run(None, {image.name: pixels.numpy()})[0])


def _inputs(bands: int, smallest: int) -> list[Tensor]:
    """Return inputs whose sizes and batches differ from the traced ones."""
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (1, smallest, 5 * smallest // 2),
        (3, 3 * smallest // 2 + 1, smallest + 11),
        (2, 4 * smallest - 3, 2 * smallest + 3),
    )
    return [torch.randn(batch, bands, *size, generator=generator) for batch, *size in shapes]


@torch.inference_mode()
def run_on(network: nn.Module, inputs: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return each input with the network's output."""
    return [(pixels, network(pixels)) for pixels in inputs]


def check_finite(path: Path, samples: list[tuple[Tensor, Tensor]]) -> None:
    """Refuse a model whose outputs are not finite in PyTorch."""
    if not all(logits.isfinite().all() for _, logits in samples):
        raise ExportError(f"{path}: not written: the model's logits are not finite even in PyTorch")


def compare_with_pytorch(
    path: Path, content: bytes, format: Format, samples: list[tuple[Tensor, Tensor]]
) -> float | None:
    """Return a file's largest difference from PyTorch's outputs, as a share of the largest, if it is small.

    Return None if an ONNX file cannot be checked because ONNX Runtime is not installed.

    Raises:
        ExportError: the file disagrees with PyTorch.
    """
    if format == "onnx" and not find_spec("onnxruntime"):
        return None
    difference = _largest_difference(_load_exported(content, format), samples)
    _check_difference(path, difference)
    return difference


@torch.inference_mode()
def _largest_difference(run: Callable[[Tensor], Tensor], samples: list[tuple[Tensor, Tensor]]) -> float:
    """Return the largest difference, as a share of the largest logit; not finite if a logit is not."""
    tiny = torch.finfo(torch.float32).tiny  # avoids dividing by 0
    differences = [
        (run(pixels) - logits).abs().max() / logits.abs().max().clamp(min=tiny) for pixels, logits in samples
    ]
    return torch.stack(differences).max().item()


def _check_difference(path: Path, difference: float) -> None:
    if not math.isfinite(difference):
        raise ExportError(
            f"{path}: not written: the file's logits are not finite, unlike PyTorch's; "
            "see Limits in docs/export.md"
        )
    if difference >= EXPORT_TOLERANCE:
        raise ExportError(
            f"{path}: not written: its logits differ from PyTorch's by {difference:.1e} of the largest logit"
        )


def check_exportable(model: nn.Module, path: Path, format: str, overwrite: bool) -> None:
    """Check format, size and path before the slow export starts."""
    _check_format(model, format)
    _check_writable(path, overwrite)


def _check_format(model: nn.Module, format: str) -> None:
    if format not in get_args(Format):
        raise ExportError(f"format must be one of {', '.join(get_args(Format))}, not {format!r}")
    if format == "onnx":
        with optional_imports("the ONNX format"):
            for package in ("onnx", "onnxscript"):
                import_module(package)
        size = 4 * sum(parameter.numel() for parameter in model.parameters())
        if size >= LARGEST_ONNX:
            raise ExportError(
                f"the weights take {size / 2**30:.1f} GiB, but an ONNX file holds less than 2 GiB; use pt2"
            )


def _check_writable(path: Path, overwrite: bool) -> None:
    """Check that `path` can be written."""
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: already exists; overwrite it or choose another name")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(f"{path}: cannot be written: {folder} is not a writable folder")
