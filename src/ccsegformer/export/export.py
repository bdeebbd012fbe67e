"""A trained model as one file that runs without transformers: ONNX, or PyTorch's own pt2."""

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
from ccsegformer.ops.explicit import explicit_criss_cross_attention

Format = Literal["onnx", "pt2"]

LARGEST_ONNX = 2**31  # bytes, with which protobuf ends
TOLERANCE = 1e-3  # of the largest logit; rounding alone stays below a hundredth of that


def export(
    model: CrissCrossSegformerForSemanticSegmentation,
    classes: Classes,
    path: str | Path,
    format: Format,
    *,
    overwrite: bool = False,
) -> float | None:
    """Write a model as one file, checked against PyTorch before it appears under its name.

    The file takes `pixel_values`, float32 (batch, bands, H, W), normalised, of any batch and any size with
    sides from `smallest_side` on, and gives `logits`, float32 (batch, K, ceil(H / 4), ceil(W / 4)). It
    carries the entries of `describe`: ONNX in its metadata properties, pt2 in its extra files.

    Args:
        model: exported in evaluation mode, in float32, for the CPU; left as it is.
        classes: one for each of the model's.
        path: the file to write.
        format: "onnx" (opset 20; with the `export` extra) or "pt2" (`torch.export`).
        overwrite: replace the file that `path` names.

    Returns:
        The largest difference from PyTorch's logits, as a share of the largest logit, over three inputs
        of other sizes and batches than the export's; None without ONNX Runtime to run an ONNX file.

    Raises:
        ExportError: an unknown format, a model too large for ONNX or whose logits are
            not finite, or a file that disagrees with PyTorch; nothing is written then.
        MissingExtraError: onnx or onnxscript is not installed.
        OutputError: `path` exists and may not be overwritten, or cannot be written.
    """
    path = Path(path)
    _check_format(model, format)
    _check_writable(path, overwrite)
    network = _Logits(model)
    samples = _samples(network, smallest_side(model.config))
    if not all(logits.isfinite().all() for _, logits in samples):
        raise ExportError(f"{path}: not written: PyTorch itself gives logits that are not finite")
    description = describe(model.config, classes)
    program = _trace(network, smallest_side(model.config))
    if format == "onnx":
        from ccsegformer.export._onnx import to_onnx

        content = to_onnx(program, description)
    else:
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files=description)
        content = buffer.getvalue()
    difference = None
    if format == "pt2" or find_spec("onnxruntime"):
        run = _run_onnx(content) if format == "onnx" else torch.export.load(io.BytesIO(content)).module()
        difference = _largest_difference(run, samples)
        if not math.isfinite(difference):
            raise ExportError(
                f"{path}: not written: its logits are not finite, unlike PyTorch's (docs/export.md: Limits)"
            )
        if difference >= TOLERANCE:
            raise ExportError(
                f"{path}: not written: it differs from PyTorch by {difference:.1e} of the largest logit"
            )
    write_atomically(path, content)
    return difference


def smallest_side(config: CrissCrossSegformerConfig) -> int:
    """The least height and width that an exported model takes; 64 for every published size.

    A traced program holds for sizes above 1 only, of every stage and of its reduced keys.
    """
    strides = [math.prod(config.strides[: stage + 1]) for stage in range(len(config.strides))]
    return 2 * max(stride * ratio for stride, ratio in zip(strides, config.sr_ratios, strict=True))


def describe(config: CrissCrossSegformerConfig, classes: Classes) -> dict[str, str]:
    """What a file says about itself, enough to label images by it alone: each value is JSON."""
    own = config.band_means is not None
    entries = {
        "class_names": classes.names,
        "palette": classes.palette,
        "ignore_index": classes.ignore_index,
        "num_channels": config.num_channels,
        # (values * rescale_factor - image_mean) / image_std is pixel_values
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


class _Logits(nn.Module):
    """A copy of a model that takes and gives tensors alone."""

    def __init__(self, model: CrissCrossSegformerForSemanticSegmentation) -> None:
        super().__init__()
        self.bands = model.config.num_channels
        self.model = copy.deepcopy(model).to("cpu", torch.float32)
        self.requires_grad_(False).eval()

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values).logits


def _trace(network: _Logits, smallest: int) -> torch.export.ExportedProgram:
    """The program of a network, with dynamic batch, height and width, of PyTorch's own operators alone."""
    sizes = {
        0: torch.export.Dim("batch", min=1),
        2: torch.export.Dim("height", min=smallest),
        3: torch.export.Dim("width", min=smallest),
    }
    # A batch of 2 and sides that differ, since a size of 1 or two equal ones would be taken for a rule.
    pixels = torch.zeros(2, network.bands, 3 * smallest // 2, 2 * smallest)
    program = torch.export.export(network, (pixels,), dynamic_shapes={"pixel_values": sizes})
    program = program.run_decompositions(
        {torch.ops.ccsegformer.flash_criss_cross.default: explicit_criss_cross_attention}
    )
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # names folders of the machine that exports
    return program


def _run_onnx(content: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(None, {"pixel_values": pixels.numpy()})[0])


@torch.inference_mode()
def _samples(network: _Logits, smallest: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs of other sizes and batches than the trace's, with the network's logits."""
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (1, smallest, 5 * smallest // 2),
        (3, 3 * smallest // 2 + 1, smallest + 11),
        (2, 4 * smallest - 3, 2 * smallest + 3),
    )
    inputs = (torch.randn(batch, network.bands, *size, generator=generator) for batch, *size in shapes)
    return [(pixels, network(pixels)) for pixels in inputs]


@torch.inference_mode()
def _largest_difference(run: Callable[[Tensor], Tensor], samples: list[tuple[Tensor, Tensor]]) -> float:
    """Between the logits of both, as a share of the largest; not finite where those of `run` are not."""
    tiny = torch.finfo(torch.float32).tiny  # instead of 0
    differences = [
        (run(pixels) - logits).abs().max() / logits.abs().max().clamp(min=tiny) for pixels, logits in samples
    ]
    return torch.stack(differences).max().item()


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
                f"the weights are {size / 2**30:.1f} GiB, and an ONNX file has at most 2; use pt2"
            )


def _check_writable(path: Path, overwrite: bool) -> None:
    """Notice before the work what would stop the writing after it."""
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name a file")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: is there already; overwrite it or choose another name")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(f"{path}: cannot be written: {folder} is no folder that you may write to")
