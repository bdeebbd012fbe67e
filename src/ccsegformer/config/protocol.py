"""Evaluation protocols: how a model sees an image and how it is scored, as validated YAML files."""

from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, model_validator

from ccsegformer.config.validation import Section, validate
from ccsegformer.config.yaml_files import read_yaml
from ccsegformer.errors import RecipeError
from ccsegformer.files import write_atomically

Pixels = Annotated[int, Field(ge=1)]
SCORES = {"mean_iou": "mean IoU of the data set", "mean_image_iou": "mean of the images' own mIoU"}


class ResizeSection(Section):
    """Size of the images that the network sees; without keys, their own size.

    The shorter side becomes `short_side`, or less where the longer side would otherwise exceed `long_side`;
    the aspect ratio is kept. Then each side is stretched to the next multiple of `multiple_of`.
    """

    short_side: Pixels | None = None
    long_side: Pixels | None = None
    multiple_of: Pixels | None = None

    @model_validator(mode="after")
    def _long_is_longer(self) -> Self:
        if self.long_side is not None and (self.short_side is None or self.short_side > self.long_side):
            raise ValueError("long_side needs a short_side that is not larger")
        return self


class WindowSection(Section):
    """Square windows of `size` pixels, `stride` pixels apart; the last one ends at the image's edge."""

    size: Annotated[int, Field(ge=32)]
    stride: Pixels

    @model_validator(mode="after")
    def _covers(self) -> Self:
        if self.stride > self.size:
            raise ValueError(f"stride {self.stride} is larger than size {self.size}, which leaves gaps")
        return self


class EvaluationProtocol(Section):
    """All settings that affect a score, apart from the model and the images.

    Logits are resized to the original resolution of an image before labels are compared. The default is one
    pass over each image at its own size.

    Attributes:
        resize: Size of the images that the network sees.
        window: Sliding windows over the resized image; None for the whole image at once.
        scales: Factors of the image size; class probabilities are averaged over them.
        flip: Whether to average over each scale and its mirror image.
        precision: Precision of the network; bf16 and fp16 use autocast.
        score: Headline score. All scores are computed in any case.
    """

    resize: ResizeSection = ResizeSection()
    window: WindowSection | None = None
    scales: Annotated[tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], Field(min_length=1)] = (
        1.0,
    )
    flip: bool = False
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    score: Literal["mean_iou", "mean_image_iou"] = "mean_iou"

    @property
    def name(self) -> str:
        """Name of the built-in protocol that equals this one, or "default" or "own"."""
        for name in known_protocols():
            if load_protocol(name) == self:
                return name
        return "default" if self == EvaluationProtocol() else "own"

    def summary(self) -> str:
        """Describe the protocol on one line."""
        size, window = "images at their own size", self.window
        if self.resize.short_side is not None:
            size = f"shorter side resized to {self.resize.short_side}"
            if self.resize.long_side is not None:
                size += f", the longer to at most {self.resize.long_side}"
        if self.resize.multiple_of is not None:
            size += f", then sides stretched up to multiples of {self.resize.multiple_of}"
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        return "; ".join(
            [
                size,
                f"windows of {window.size}, one every {window.stride}" if window else "whole image",
                "one scale" if self.scales == (1.0,) else f"scales {scales}",
                "with flip" if self.flip else "no flip",
                self.precision,
                f"score: {SCORES[self.score]}",
            ]
        )


DEFAULT = EvaluationProtocol()


def known_protocols() -> list[str]:
    """Return the names of the built-in protocols."""
    return sorted(
        path.name.removesuffix(".yaml") for path in _folder().iterdir() if path.name.endswith(".yaml")
    )


def load_protocol(name_or_path: str | Path) -> EvaluationProtocol:
    """Read a built-in protocol by its name, or a YAML file.

    Raises:
        RecipeError: there is no protocol of that name, or the file is not valid.
    """
    name, known = str(name_or_path), known_protocols()
    if name in known:
        with as_file(_folder() / f"{name}.yaml") as path:
            return _read_protocol(path)
    if not name.endswith((".yaml", ".yml")) and not Path(name).is_file():
        raise RecipeError(f"unknown protocol '{name}': must be one of {', '.join(known)}, or a YAML file")
    return _read_protocol(Path(name))


def with_precision(protocol: EvaluationProtocol, precision: str) -> EvaluationProtocol:
    """Return the protocol with another precision of the network.

    Raises:
        RecipeError: there is no such precision.
    """
    return validate(EvaluationProtocol, {**protocol.model_dump(), "precision": precision}, "--precision")


def save_protocol(protocol: EvaluationProtocol, path: str | Path) -> None:
    """Write a protocol with all its keys; `load_protocol` reads back an equal one."""
    write_atomically(path, yaml.safe_dump(protocol.model_dump(mode="json"), sort_keys=False))


def _read_protocol(path: Path) -> EvaluationProtocol:
    return validate(EvaluationProtocol, read_yaml(path, "keys such as 'resize:' and 'flip:'"), path)


def _folder() -> Traversable:
    return files("ccsegformer.config") / "protocols"
