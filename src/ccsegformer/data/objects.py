"""Adapt data set objects for training and evaluation: torch, torchvision, torchgeo, Hugging Face, lists."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset, IterableDataset
from torchvision import tv_tensors

from ccsegformer.data.colors import labels_from_pillow, labels_of_colors
from ccsegformer.data.dataset import DrawnSamples, LabelledImages, Sample, check_size, to_labels
from ccsegformer.data.images import ids_from_pillow, refuse_jpeg, rgb_from_pillow
from ccsegformer.data.labels import Classes
from ccsegformer.data.pairs import check_image_palette, check_turns, orientation_of
from ccsegformer.errors import DataError

IMAGE_TYPES = ("uint8", "uint16", "int16", "float16", "bfloat16", "float32", "float64")
MASK_KEYS = ("mask", "annotation", "label")
NAME_KEYS = ("name", "filename")
TRIED = 16
"""Most samples that are tried for the bands of an object."""


def as_dataset(
    data: Any,
    classes: Classes | Sequence[str] | None = None,
    *,
    image: str = "image",
    mask: str | None = None,
) -> LabelledImages | DrawnSamples:
    """Adapt a map-style data set, such as a `torch.utils.data.Dataset` or a Hugging Face `datasets.Dataset`.

    Items are (image, mask) pairs or mappings. An image is a Pillow image, which becomes 8-bit RGB; a tensor
    (C, H, W); or an array (H, W, C) or (H, W), of uint8, uint16, int16 or floats. A mask is a grey or palette
    Pillow image, or a tensor or array (H, W) or (1, H, W) of whole numbers. Every sample is checked when it
    is read. `DrawnSamples` are returned as they are.

    Args:
        data: Object with `__len__` and `__getitem__`. Its `names`, if it has one for each item, name the
            samples; otherwise they are numbered.
        classes: Classes or their names; by default `data.classes`.
        image: Key of the image in a mapping.
        mask: Key of the mask in a mapping; by default "mask", "annotation" or "label", whichever comes first.

    Raises:
        DataError: Not a map-style data set, no samples, no classes, or first samples that are all unusable.
    """
    kind = type(data).__name__
    if isinstance(data, DrawnSamples) or (isinstance(data, ObjectImages) and classes is None):
        return data
    if isinstance(data, Mapping):
        raise DataError(f"{kind}: pass one of its splits: {', '.join(map(str, data))}")
    is_map_style = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if isinstance(data, str | IterableDataset) or not is_map_style:
        raise DataError(f"{kind}: not a map-style data set, which has a length and is indexed by number")
    if len(data) == 0:
        raise DataError(f"{kind}: has no samples")
    found = own_classes(data) if classes is None else _as_classes(classes, "classes")
    if found is None:
        raise DataError(f"{kind}: has no class names; pass classes=, a list of names or a Classes")
    return ObjectImages(data, found, image, mask)


def own_classes(data: Any) -> Classes | None:
    """Return the classes that a data set object names in `classes`, or None."""
    value: Any = getattr(data, "classes", None)
    if isinstance(value, Classes):
        return value
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) for name in value):
        return None
    return _as_classes(value, f"{type(data).__name__}.classes")


def describe_object(data: Any) -> str:
    """Return a line for recipes that says where the samples came from."""
    source, count = data.data if isinstance(data, ObjectImages) else data, len(data)
    return f"{type(source).__name__} object, {count} sample{'s' * (count != 1)}"


class ObjectImages(Dataset[Sample]):
    """Checked samples of a data set object; see `as_dataset`. All images must have the bands of the first.

    A first sample that cannot be read is an error when it is asked for, if one of those after it can.
    """

    def __init__(self, data: Any, classes: Classes, image: str, mask: str | None) -> None:
        self.data, self.classes = data, classes
        self.names: tuple[str, ...] = _names(data)
        self._image, self._mask = image, mask
        self._first: tuple[int, int, torch.dtype] | None = None
        self._first = self._find_first()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Read, convert and check a sample."""
        title, image_value, mask_value = self._item(index)
        ids = mask_from_object(mask_value, title, self.classes)
        if isinstance(mask_value, Image.Image) and not (self.classes.label_map or self.classes.colors):
            check_image_palette(mask_value, ids, self.classes, title)
        ids = to_labels(ids, self.classes, title)
        image = image_from_object(image_value, ids, title)
        if isinstance(image_value, Image.Image) and isinstance(mask_value, Image.Image):
            turns = orientation_of(mask_value), orientation_of(image_value)
            check_turns(ids, image, turns, (f"{title}: the mask", "the image"))
        check_size(ids, image, title)
        if self._first is not None and self._first[1:] != (len(image), image.dtype):
            first, number, kind = self._first
            raise DataError(
                f"{title}: {_band_text(len(image), image.dtype)}, "
                f"but sample {first} has {_band_text(number, kind)}"
            )
        if ids.dtype != torch.uint8:
            ids = ids.to(torch.uint8 if self.classes.ignore_index <= 255 else torch.int32)
        return {"image": tv_tensors.Image(image), "mask": tv_tensors.Mask(ids), "name": self.names[index]}

    def _find_first(self) -> tuple[int, int, torch.dtype]:
        """Return the index, the bands and the type of the first sample that can be read, of those tried."""
        problem: DataError | None = None
        for index in range(min(len(self), TRIED)):
            try:
                image = self[index]["image"]
            except DataError as error:
                problem = problem or error
            else:
                return index, len(image), image.dtype
        assert problem is not None
        raise problem

    def _item(self, index: int) -> tuple[str, Any, Any]:
        """Return the title of an item in messages, its image and its mask."""
        name = self.names[index]  # an IndexError past the end, so that iteration stops
        title = f"{type(self.data).__name__}[{index}]"
        try:
            item = self.data[index]
        except DataError:
            raise
        except Exception as error:  # whatever the object raises
            reason = " ".join(str(error).split())
            raise DataError(f"{title}: {type(error).__name__}: {reason}") from error
        if isinstance(item, Mapping):
            named = next((item[key] for key in NAME_KEYS if isinstance(item.get(key), str)), name)
            title += f" ({named})" if named != name else ""
            keys = (self._image, self._mask or next((key for key in MASK_KEYS if key in item), MASK_KEYS[0]))
            for key in keys:
                if key not in item:
                    raise DataError(
                        f"{title}: no {key!r} among {', '.join(map(str, item))}; name the keys with "
                        "as_dataset(data, image=..., mask=...)"
                    )
            return title, item[keys[0]], item[keys[1]]
        if isinstance(item, tuple | list) and len(item) == 2:
            return title, item[0], item[1]
        raise DataError(
            f"{title}: an item must be an (image, mask) pair or a mapping, not {type(item).__name__}"
        )


def image_from_object(value: Any, mask: torch.Tensor, title: str) -> torch.Tensor:
    """Convert an image to uint8 or float32 (bands, H, W). Its mask (H, W) tells which axis holds the bands.

    Raises:
        DataError: Another type or layout, or values that are not finite.
    """
    if isinstance(value, Image.Image):
        return rgb_from_pillow(_upright(value, title), title)
    is_array = isinstance(value, np.ndarray)
    if not is_array and not isinstance(value, torch.Tensor):
        raise DataError(f"{title}: image must be a Pillow image, tensor or array, not {type(value).__name__}")
    kind = value.dtype.name if is_array else str(value.dtype).removeprefix("torch.")
    if kind not in IMAGE_TYPES:
        raise DataError(f"{title}: image of {kind}; use uint8, uint16, int16 or floats")
    shape, size = tuple(value.shape), tuple(mask.shape)
    if is_array and len(shape) == 2:
        value, shape = value[..., None], (*shape, 1)
    wanted, other = (shape[:2], shape[1:]) if is_array else (shape[1:], shape[:2])
    if len(shape) != 3 or (wanted != size and other == size):
        layout = "an array must be (H, W, C) or (H, W)" if is_array else "a tensor must be (C, H, W)"
        raise DataError(f"{title}: image of shape {shape} for a mask of {size}; {layout}")
    pixels = _as_tensor(np.moveaxis(value, 2, 0) if is_array else value)
    if kind == "uint8":
        return pixels
    pixels = pixels.to(torch.float32)
    if not pixels.isfinite().all():
        raise DataError(f"{title}: image has NaN or infinite values")
    return pixels


def mask_from_object(value: Any, title: str, classes: Classes) -> torch.Tensor:
    """Convert a mask to integer class ids (H, W), or to labels if it is in the colours of the classes.

    Raises:
        DataError: Another type or shape, or values that are not whole numbers.
    """
    if isinstance(value, Image.Image):
        refuse_jpeg(value, title)
        upright = _upright(value, title)
        return (
            labels_from_pillow(upright, classes, title) if classes.colors else ids_from_pillow(upright, title)
        )
    if not isinstance(value, np.ndarray | torch.Tensor):
        raise DataError(f"{title}: mask must be a Pillow image, tensor or array, not {type(value).__name__}")
    shape = tuple(value.shape)
    if classes.colors:
        return _labels_of_array(value, title, classes)
    if len(shape) == 3 and shape[0] == 1:
        value = value[0]
    elif len(shape) != 2:
        raise DataError(f"{title}: mask of shape {shape}; it must be (H, W) or (1, H, W)")
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biuf":
        raise DataError(f"{title}: mask of {value.dtype.name}; use whole numbers")
    ids = _as_tensor(value)
    if ids.is_complex() or (ids.is_floating_point() and not (ids == ids.trunc()).all()):
        raise DataError(f"{title}: mask holds values that are not whole numbers")
    return ids if ids.dtype == torch.uint8 else ids.to(torch.int64)


def _labels_of_array(value: Any, title: str, classes: Classes) -> torch.Tensor:
    """Convert a mask in colours, an array (H, W, 3) or a tensor (3, H, W) of uint8, to labels (H, W)."""
    is_array, shape = isinstance(value, np.ndarray), tuple(value.shape)
    kind = value.dtype.name if is_array else str(value.dtype).removeprefix("torch.")
    if len(shape) != 3 or shape[2 if is_array else 0] != 3 or kind != "uint8":
        layout = "an array (H, W, 3)" if is_array else "a tensor (3, H, W)"
        raise DataError(f"{title}: mask of shape {shape} and {kind}; in colours it must be {layout} of uint8")
    pixels = _as_tensor(value) if is_array else _as_tensor(value).permute(1, 2, 0)
    return torch.from_numpy(labels_of_colors(pixels.numpy(), classes, title))


def _as_classes(value: Classes | Sequence[str], source: str) -> Classes:
    if isinstance(value, Classes):
        return value
    if isinstance(value, str):
        raise DataError(f"{source}: must be a list of names or a Classes, not {value!r}")
    try:
        return Classes(tuple(value), ignore_index=255 if len(value) <= 255 else 65535)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None


def _names(data: Any) -> tuple[str, ...]:
    """Return the names that the object has for its items, or numbered ones."""
    names, count = getattr(data, "names", None), len(data)
    if isinstance(names, list | tuple) and len(set(map(str, names))) == len(names) == count:
        return tuple(map(str, names))
    return tuple(f"{type(data).__name__}-{index:06}" for index in range(count))


def _upright(image: Image.Image, title: str) -> Image.Image:
    """Load a Pillow image and return it rotated as its EXIF orientation says."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # the decoders raise many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{title}: damaged image: {reason}") from error


def _as_tensor(value: Any) -> torch.Tensor:
    """Return a copy as a plain CPU tensor, so that changing a sample leaves the data set as it was."""
    if isinstance(value, np.ndarray):  # copied: torch wants writable memory in the machine's byte order
        value = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
        return value
    return value.detach().to("cpu", copy=True).as_subclass(torch.Tensor)


def _band_text(number: int, dtype: torch.dtype) -> str:
    return f"{number} band{'s' * (number != 1)} of {str(dtype).removeprefix('torch.')}"
