"""Protocols: how a model is shown an image and how it is scored, as a validated YAML file."""

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
    """To what size the network is given an image; with no key, its own.

    The sides keep their ratio: the shorter one becomes `short_side`, unless the longer one would exceed
    `long_side`, which then decides. Afterwards both are stretched up to the next multiple of `multiple_of`.
    """

    short_side: Pixels | None = None
    long_side: Pixels | None = None
    multiple_of: Pixels | None = None

    @model_validator(mode="after")
    def _long_is_longer(self) -> Self:
        if self.long_side is not None and (self.short_side is None or self.short_side > self.long_side):
            raise ValueError("long_side is a limit beside short_side, and not below it")
        return self


class WindowSection(Section):
    """Square windows of `size` pixels, one every `stride`; the last ones end where the image does."""

    size: Annotated[int, Field(ge=32)]
    stride: Pixels

    @model_validator(mode="after")
    def _covers(self) -> Self:
        if self.stride > self.size:
            raise ValueError(f"stride {self.stride} is above size {self.size}, which leaves gaps")
        return self


class EvaluationProtocol(Section):
    """Everything that decides a score beside the model and the images; the default is the plainest.

    Labels are always compared at an image's original resolution, to which the logits are resized.

    Attributes:
        resize: the size at which the network is given an image.
        window: windows that slide over the resized image; None shows it whole.
        scales: factors on that size; the probabilities of all are averaged.
        flip: whether each scale is seen mirrored as well.
        precision: of the network; bf16 and fp16 through autocast.
        score: which of the figures, all of which are always taken, stands at the head.
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
        """Of the known protocols the one that is equal to this, else "default", else "own"."""
        for name in known_protocols():
            if load_protocol(name) == self:
                return name
        return "default" if self == EvaluationProtocol() else "own"

    def summary(self) -> str:
        """The protocol in one sentence."""
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
    """The names that `load_protocol` knows."""
    return sorted(
        path.name.removesuffix(".yaml") for path in _folder().iterdir() if path.name.endswith(".yaml")
    )


def load_protocol(name_or_path: str | Path) -> EvaluationProtocol:
    """Read a known protocol by its name, or a YAML file.

    Raises:
        RecipeError: one line: an unknown name, with the known ones, or what is wrong in the file.
    """
    name, known = str(name_or_path), known_protocols()
    if name in known:
        with as_file(_folder() / f"{name}.yaml") as path:
            return _read(path)
    if not name.endswith((".yaml", ".yml")) and not Path(name).is_file():
        raise RecipeError(
            f"unknown protocol '{name}': give the name of one, {', '.join(known)}, or a YAML file"
        )
    return _read(Path(name))


def with_precision(protocol: EvaluationProtocol, precision: str) -> EvaluationProtocol:
    """The protocol with another precision of the network.

    Raises:
        RecipeError: an unknown precision.
    """
    return validate(EvaluationProtocol, {**protocol.model_dump(), "precision": precision}, "--precision")


def save_protocol(protocol: EvaluationProtocol, path: str | Path) -> None:
    """Write a protocol with all its keys, so that `load_protocol` gives back the same one."""
    write_atomically(path, yaml.safe_dump(protocol.model_dump(mode="json"), sort_keys=False))


def _read(path: Path) -> EvaluationProtocol:
    return validate(EvaluationProtocol, read_yaml(path, "keys such as 'resize:' and 'flip:'"), path)


def _folder() -> Traversable:
    return files("ccsegformer.config") / "protocols"
