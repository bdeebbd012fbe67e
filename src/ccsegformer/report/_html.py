"""Shared by the HTML pages: the jinja2 environment, images as data URLs, and values as text."""

import base64
import io
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from ccsegformer.config.protocol import EvaluationProtocol
from ccsegformer.models.attention import ATTENTIONS
from ccsegformer.report.table import number, span

LONGEST_SIDE = 1024
"""Longest side of an embedded image, in pixels; larger ones are scaled down to keep pages small."""


def environment() -> Environment:
    """Return an environment that escapes everything, rejects undefined names and formats scores and keys."""
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


def panel(
    pixels: NDArray[np.uint8],
    title: str,
    alt: str,
    *,
    is_labels: bool = True,
    longest_side: int = LONGEST_SIDE,
) -> dict[str, Any]:
    """Encode an RGB picture (H, W, 3) for the templates; labels keep their exact colours."""
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
    """Return a stored protocol with one summary in place of the keys that it covers."""
    covered = {"name", "summary", *EvaluationProtocol.model_fields}
    rest = {key: value for key, value in record.items() if key not in covered}
    return {"protocol": f"{record['name']}: {record['summary']}", **rest}


def _words(key: str) -> str:
    """Turn a key of the results into a caption."""
    words = key.replace("_", " ").capitalize()
    for written, read in (("iou", "IoU"), (" gib", ", GiB"), ("Gpu", "GPU")):
        words = words.replace(written, read)
    return words


def _plain(value: object) -> str:
    """Format a value, with lists joined and numbers shortened."""
    if isinstance(value, list | tuple):
        return ", ".join(_plain(each) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
