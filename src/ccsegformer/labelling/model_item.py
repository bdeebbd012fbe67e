"""Read STAC items of the Machine Learning Model extension (MLM): a model file, and how to use it.

Source: https://github.com/stac-extensions/mlm, versions 1.0 to 1.6.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from ccsegformer.data.labels import Classes
from ccsegformer.data.palette import Color, default_palette
from ccsegformer.data.pixels import IMAGE_MEAN, IMAGE_STD
from ccsegformer.errors import DataError, EngineError
from ccsegformer.labelling.model_files import ENGINES
from ccsegformer.labelling.preprocess import Preprocessing, given_preprocessing

MULTIHASHES = {"1114": "sha1", "1220": "sha256", "1340": "sha512", "d50110": "md5"}
"""Beginning of a `file:checksum`, and its hash function."""
AXES = (("batch",), ("channel", "channels", "band", "bands"), ("height", "y"), ("width", "x"))
"""Names of an input's axes, in the order that engines take."""


class _ItemPart(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Band(_ItemPart):
    name: str
    expression: Any = None


class _Scaling(_ItemPart):
    type: str | None = None
    minimum: FiniteFloat | None = None
    maximum: FiniteFloat | None = None
    mean: FiniteFloat | None = None
    stddev: FiniteFloat | None = None
    value: FiniteFloat | None = None


class _Structure(_ItemPart):
    shape: list[int]
    dim_order: list[str]
    data_type: str


class _ModelInput(_ItemPart):
    bands: list[str | _Band] | None = None
    variables: list[Any] | None = None
    input: _Structure
    value_scaling: list[_Scaling | None] | _Scaling | None = None  # pystac writes a single one
    resize_type: str | None = None
    pre_processing_function: Any = None
    norm_type: str | None = None  # this and the next two: MLM up to 1.2
    norm_clip: list[float] | None = None
    statistics: list[_Scaling] | None = None


class _ModelClass(_ItemPart):
    value: int
    name: str | None = None
    title: str | None = None
    description: str | None = None
    color_hint: str | None = None


class _ModelOutput(_ItemPart):
    tasks: list[str]
    classes: list[_ModelClass] | None = Field(None, alias="classification:classes")


class _Properties(_ItemPart):
    inputs: list[_ModelInput] = Field(alias="mlm:input")
    outputs: list[_ModelOutput] = Field(alias="mlm:output")
    hyperparameters: dict[str, Any] | None = Field(None, alias="mlm:hyperparameters")


class _ModelAsset(_ItemPart):
    href: str
    roles: list[str] | None = None
    artifact_type: str | None = Field(None, alias="mlm:artifact_type")
    checksum: str | None = Field(None, alias="file:checksum")


class ModelItem(_ItemPart):
    """What an item says about its model."""

    properties: _Properties
    assets: dict[str, _ModelAsset]


def is_model_item(name_or_path: str | Path) -> bool:
    """Check whether a name ends as an item's does."""
    return Path(name_or_path).suffix == ".json"


def read_model_item(path: str | Path) -> ModelItem:
    """Read an MLM item of one input and with an output for segmentation.

    Raises:
        DataError: the file cannot be read or is no such item; the message names the key.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    properties = content.get("properties") if isinstance(content, dict) else None
    if not isinstance(properties, dict) or "mlm:input" not in properties:
        raise DataError(f"{path}: not a STAC item of a model: mlm:input is missing from its properties")
    try:
        item = ModelItem.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: {place}: {first['msg']}") from error
    _check_input(item, path)
    _segmentation(item, path)
    return item


def _check_input(item: ModelItem, path: str | Path) -> None:
    """Check that the only input is one that engines give: normalised float32 (batch, bands, H, W)."""
    inputs = item.properties.inputs
    if len(inputs) != 1:
        raise DataError(f"{path}: mlm:input has {len(inputs)} inputs; models of one input can be run")
    [given] = inputs
    order, kind = given.input.dim_order, given.input.data_type
    if len(order) != 4 or any(axis.lower() not in known for axis, known in zip(order, AXES, strict=True)):
        raise DataError(
            f"{path}: mlm:input: dim_order is {', '.join(order)}; models of batch, channel, height, width "
            "can be run"
        )
    if len(given.input.shape) != 4:
        raise DataError(f"{path}: mlm:input: shape has {len(given.input.shape)} numbers for 4 axes")
    if kind != "float32":
        raise DataError(f"{path}: mlm:input: data_type is {kind}; models of float32 can be run")
    if given.variables:
        raise DataError(f"{path}: mlm:input: variables are not supported, only bands")
    if given.resize_type not in (None, "crop", "pad"):
        raise DataError(
            f"{path}: mlm:input: resize_type {given.resize_type} is not supported: pixels keep their size"
        )
    channels = given.input.shape[1]
    if given.bands and channels > 0 and len(given.bands) != channels:
        raise DataError(f"{path}: mlm:input: {len(given.bands)} bands for a shape of {channels}")


def _segmentation(item: ModelItem, path: str | Path) -> _ModelOutput:
    """Return the output that labels pixels."""
    outputs = item.properties.outputs
    for output in outputs:
        if {"semantic-segmentation", "segmentation"} & set(output.tasks):
            return output
    tasks = ", ".join(task for output in outputs for task in output.tasks)
    raise DataError(f"{path}: mlm:output is for {tasks or 'nothing'}, not for semantic-segmentation")


def model_file_of(item: ModelItem, path: str | Path) -> Path:
    """Return the item's model file, after comparing it with its checksum.

    A file with an address is taken from the item's folder, where the user has downloaded it.

    Raises:
        EngineError: there is no ONNX, OpenVINO or pt2 file, it is missing, or has another checksum.
    """
    models = [asset for asset in item.assets.values() if "mlm:model" in (asset.roles or ())]
    asset = next((each for each in models if _name_of(each.href).suffix in ENGINES), None)
    if asset is None:
        held = ", ".join(
            f"{each.href} ({each.artifact_type or 'of no mlm:artifact_type'})" for each in models
        )
        raise EngineError(
            f"{path}: {f'its model is {held}' if held else 'no asset has the role mlm:model'}; "
            f"{', '.join(ENGINES)} files can be run"
        )
    file = _local(asset.href, Path(path).parent)
    if not file.is_file():
        advice = f": download {asset.href} to there" if _is_address(asset.href) else ""
        raise EngineError(f"{path}: its model {file} is missing{advice}")
    if asset.checksum is not None:
        _check_checksum(file, asset.checksum, path)
    return file


def _is_address(href: str) -> bool:
    return "://" in href and not href.startswith("file://")


def _name_of(href: str) -> PurePosixPath:
    return PurePosixPath(unquote(urlsplit(href).path) if "://" in href else href)


def _local(href: str, folder: Path) -> Path:
    """Return where a file lies: an address's in the folder itself."""
    name = _name_of(href)
    return folder / (name.name if _is_address(href) else name)


def _check_checksum(file: Path, checksum: str, path: str | Path) -> None:
    """Compare a file with a multihash in hexadecimal digits."""
    checksum = checksum.lower()
    for prefix, name in MULTIHASHES.items():
        if checksum.startswith(prefix):
            with file.open("rb") as content:
                found = hashlib.file_digest(content, name).hexdigest()
            if checksum != prefix + found:
                raise EngineError(
                    f"{file}: is not the file that {path} describes: its {name} is {found[:12]}..., not "
                    f"{checksum.removeprefix(prefix)[:12]}... (file:checksum)"
                )
            return
    raise EngineError(
        f"{path}: file:checksum {checksum[:12]}... is not a multihash of {', '.join(MULTIHASHES.values())}"
    )


def band_names_of(item: ModelItem, path: str | Path) -> tuple[str, ...]:
    """Return the names of the model's bands, in its order; () if there are none.

    Raises:
        DataError: a band is computed from others.
    """
    names = []
    for band in item.properties.inputs[0].bands or ():
        if isinstance(band, _Band) and band.expression is not None:
            raise DataError(f"{path}: mlm:input: band {band.name!r} is an expression, which is not supported")
        names.append(band.name if isinstance(band, _Band) else band)
    return tuple(names)


def bands_by_name(names: Sequence[str], descriptions: Sequence[str | None]) -> tuple[int, ...] | None:
    """Find the bands, from 1, whose descriptions are these names; None unless each is found once.

    Capitals and leading zeros make no difference: B4 is b04.
    """
    wanted = [_plain_band(name) for name in names]
    present = [_plain_band(each or "") for each in descriptions]
    if len(set(wanted)) != len(wanted) or any(present.count(name) != 1 for name in wanted):
        return None
    return tuple(present.index(name) + 1 for name in wanted)


def _plain_band(name: str) -> str:
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", name.strip().lower())


def preprocessing_of_item(item: ModelItem, path: str | Path, channels: int | None) -> Preprocessing:
    """Return the normalisation of an item; `channels` is the number of bands of its model file, if known.

    Raises:
        DataError: it is not a difference and a quotient for each band; the message names it.
    """
    given = item.properties.inputs[0]
    if given.pre_processing_function is not None:
        _refuse(path, "a pre_processing_function")
    shape = given.input.shape[1]
    count = len(given.bands or ()) or (shape if shape > 0 else channels)
    if count is None:
        raise DataError(f"{path}: mlm:input: says not how many bands; give --mean and --std")
    if channels not in (None, count):
        raise DataError(f"{path}: mlm:input has {count} bands, but its model file takes {channels}")
    pairs = [_affine(each, path) for each in _scalings(given, path)]
    pairs = pairs * count if len(pairs) == 1 else pairs
    if len(pairs) != count:
        raise DataError(f"{path}: mlm:input: value_scaling of {len(pairs)} bands for {count}")
    if _is_imagenet(pairs):
        return Preprocessing()
    try:
        return given_preprocessing([mean for mean, _ in pairs], [std for _, std in pairs])
    except DataError as error:
        raise DataError(f"{path}: value_scaling: {error}") from None


def _refuse(path: str | Path, what: str) -> NoReturn:
    raise DataError(
        f"{path}: mlm:input: {what} cannot be applied; give --mean and --std if they say the same"
    )


def _scalings(given: _ModelInput, path: str | Path) -> list[_Scaling]:
    """Return the scaling of each band, or one for all."""
    if given.value_scaling is None and given.norm_type is not None:
        if given.norm_clip is not None:
            _refuse(path, "norm_clip")
        return [each.model_copy(update={"type": given.norm_type}) for each in given.statistics or []]
    scaling = given.value_scaling
    if isinstance(scaling, _Scaling):
        return [scaling]
    return [each or _Scaling() for each in scaling or [None]]


def _affine(scaling: _Scaling, path: str | Path) -> tuple[float, float]:
    """Return what is subtracted, and then divided by."""
    kind = scaling.type
    try:
        if kind is None:
            return 0.0, 1.0
        if kind == "z-score":
            return _finite_number(scaling, "mean"), _finite_number(scaling, "stddev")
        if kind == "min-max":
            least = _finite_number(scaling, "minimum")
            return least, _finite_number(scaling, "maximum") - least
        if kind == "offset":
            return _finite_number(scaling, "value"), 1.0
        if kind == "scale":
            return 0.0, _finite_number(scaling, "value")
    except LookupError as error:
        raise DataError(f"{path}: mlm:input: value_scaling {kind} lacks {error.args[0]}") from None
    _refuse(path, f"value_scaling {kind}")


def _finite_number(scaling: _Scaling, key: str) -> float:
    number: float | None = getattr(scaling, key)
    if number is None:
        raise LookupError(key)
    return number


def _is_imagenet(pairs: Sequence[tuple[float, float]]) -> bool:
    """Check for ImageNet's statistics of 8-bit colours."""
    known = [(255 * mean, 255 * std) for mean, std in zip(IMAGE_MEAN, IMAGE_STD, strict=True)]
    return len(pairs) == 3 and all(
        math.isclose(a, b, rel_tol=1e-6)
        for pair, other in zip(pairs, known, strict=True)
        for a, b in zip(pair, other, strict=True)
    )


def classes_of_item(item: ModelItem, path: str | Path, ignore_index: int | None) -> Classes | None:
    """Return the classes of an item's output in its colours; None if it names none.

    Args:
        item: item.
        path: its name in messages.
        ignore_index: that of the model file, if known; the item's own is in `mlm:hyperparameters`.

    Raises:
        DataError: the values are not 0, 1, 2, ..., or a class has no name or a wrong colour.
    """
    found = sorted(_segmentation(item, path).classes or (), key=lambda each: each.value)
    if not found:
        return None
    values = [each.value for each in found]
    if values != list(range(len(found))):
        raise DataError(
            f"{path}: classification:classes have the values {', '.join(map(str, values[:9]))}, not 0, 1, 2, "
            "...; name the classes in the order of the model's outputs with --classes FILE"
        )
    own = (item.properties.hyperparameters or {}).get("ignore_index", ignore_index)
    if type(own) is not int:
        own = max(255, len(found))
    colors = zip(found, default_palette(len(found)), strict=True)
    try:
        return Classes(
            tuple(map(_class_name, found)),
            tuple(_hinted_color(each.color_hint) or color for each, color in colors),
            own,
        )
    except (DataError, ValueError) as error:
        raise DataError(f"{path}: classification:classes: {error}") from None


def class_slugs(name: str, value: int) -> tuple[str, str]:
    """Return the names for a class that STAC allows (letters, digits, - and _), the second one unique."""
    slug = re.sub(r"[^0-9A-Za-z_-]+", "_", name).strip("_") or "class"
    return slug, f"{slug}_{value}"


def _class_name(found: _ModelClass) -> str:
    """Return the title, else the text that the name abbreviates, else the name."""
    text = found.description
    if found.title:
        return found.title
    if text and (not found.name or found.name in class_slugs(text, found.value)):
        return text
    return found.name or ""


def _hinted_color(hint: str | None) -> Color | None:
    if hint is None:
        return None
    if not re.fullmatch("#?[0-9A-Fa-f]{6}", hint):
        raise ValueError(f"color_hint {hint!r} is not of six hexadecimal digits")
    red, green, blue = bytes.fromhex(hint.removeprefix("#"))
    return red, green, blue
