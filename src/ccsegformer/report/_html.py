"""What the pages share: one jinja2 environment, pictures as data addresses, and values in words."""

import base64
import io
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from ccsegformer.config.protocol import EvaluationProtocol
from ccsegformer.models.attention import ATTENTIONS
from ccsegformer.report.table import number, span

LONGEST_SIDE = 1024
"""Pixels; larger pictures are shown smaller, to keep a page's size in bounds."""


def environment() -> Environment:
    """The templates, with everything escaped, nothing undefined, and filters for scores and keys."""
    environment = Environment(
        loader=PackageLoader("ccsegformer.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["attentions"] = ATTENTIONS
    environment.filters |= {
        "number": number,
        "span": span,
        "percent": lambda share: f"{100 * (share or 0):.1f}%",
        "words": _words,
        "plain": _plain,
    }
    return environment


def as_rgb(image: torch.Tensor) -> NDArray[np.uint8]:
    """An image (bands, H, W) to look at, (H, W, 3): 8-bit RGB as it is; else three bands, or one in grey.

    The values of each band are stretched from their 2nd to their 98th percentile.
    """
    pixels = image.permute(1, 2, 0).numpy()
    if pixels.shape[2] == 3 and pixels.dtype == np.uint8:
        return pixels
    pixels = pixels[:, :, [0, 1, 2] if pixels.shape[2] >= 3 else [0, 0, 0]].astype(np.float32)
    low, high = np.percentile(pixels, (2, 98), axis=(0, 1))
    return (255 * ((pixels - low) / np.maximum(high - low, 1e-6)).clip(0, 1)).round().astype(np.uint8)


def panel(
    pixels: NDArray[np.uint8],
    title: str,
    alt: str,
    *,
    is_labels: bool = True,
    longest_side: int = LONGEST_SIDE,
) -> dict[str, Any]:
    """A picture, RGB (H, W, 3), as the templates show it; labels keep their colours exactly."""
    picture = Image.fromarray(pixels)
    shown = Image.Resampling.NEAREST if is_labels else Image.Resampling.LANCZOS
    picture.thumbnail((longest_side, longest_side), shown)
    buffer = io.BytesIO()
    if is_labels:
        picture.quantize(256, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    else:
        picture.save(buffer, format="JPEG", quality=88)
    kind = "png" if is_labels else "jpeg"
    return {
        "source": f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}",
        "title": title,
        "alt": alt,
        "width": picture.width,
        "height": picture.height,
        "is_labels": is_labels,
        "attention": None,
    }


def protocol_words(record: dict[str, Any]) -> dict[str, Any]:
    """A stored protocol for reading: one sentence in place of the keys that it sums up."""
    told = {"name", "summary", *EvaluationProtocol.model_fields}
    rest = {key: value for key, value in record.items() if key not in told}
    return {"protocol": f"{record['name']}: {record['summary']}", **rest}


def _words(key: str) -> str:
    """A key of the results as a caption."""
    words = key.replace("_", " ").capitalize()
    for written, read in (("iou", "IoU"), (" gib", ", GiB"), ("Gpu", "GPU")):
        words = words.replace(written, read)
    return words


def _plain(value: object) -> str:
    """A value for reading: lists joined, numbers short."""
    if isinstance(value, list | tuple):
        return ", ".join(_plain(each) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
