"""Images without labels: found in a folder, divided, cut to pieces of one size, and normalised."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image as Pillow
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from ccsegformer.data.dataset import Sample
from ccsegformer.data.images import read_image
from ccsegformer.data.labels import Classes
from ccsegformer.data.pixels import MINIMUM_SIDE
from ccsegformer.data.stream import TrainingSample, TrainingStream
from ccsegformer.data.transforms import HorizontalFlip, RandomCrop, RandomResize
from ccsegformer.errors import DataError
from ccsegformer.labelling.preprocess import Preprocessing
from ccsegformer.raster.folders import images_in
from ccsegformer.raster.read import Box, fill_gaps, has_georeference, is_no_photograph, open_raster, read_box

LARGEST = 2048
"""Longest side, in pixels, of the part of an image that is read at once."""
HELD_BACK = (10, 50)
"""Fewest and most images that are held back; in between, a tenth."""
FEWEST = 2 * HELD_BACK[0]
RESIZE = (0.8, 1.25)


class Division(NamedTuple):
    """Files to learn from, and files held back to measure."""

    used: tuple[Path, ...]
    held_back: tuple[Path, ...]


class UnlabelledImages:
    """Images of any size, drawn as samples with an empty mask.

    Args:
        files: Photographs and scenes.
        preprocessing: What the model expects.
    """

    classes = Classes(("any", "other"))

    def __init__(self, files: Sequence[Path], preprocessing: Preprocessing) -> None:
        self.files, self.preprocessing = tuple(files), preprocessing

    def __len__(self) -> int:
        return len(self.files)

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Read an image, or a random part of a large one."""
        down, across = torch.rand(2, dtype=torch.float64, generator=generator).tolist()
        image = read_part(self.files[index], self.preprocessing, down, across)
        mask = tv_tensors.Mask(torch.zeros(image.shape[1:], dtype=torch.uint8))
        return {"image": tv_tensors.Image(image), "mask": mask, "name": str(self.files[index])}


def divide_images(folder: str | Path, preprocessing: Preprocessing, seed: int = 0) -> Division:
    """Find the images directly in a folder, check their sizes, and hold back a tenth, 10 at least.

    Args:
        folder: Folder of photographs and scenes.
        preprocessing: What the model expects.
        seed: Seed of the choice.

    Raises:
        DataError: There is no such folder; it has fewer than 20 images; one is smaller than 32 pixels or has
            bands that do not suit the model.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder")
    files = images_in(Path(folder))
    if len(files) < FEWEST:
        raise DataError(
            f"{folder}: {len(files)} images; give {FEWEST} or more, of which {HELD_BACK[0]} are held back"
        )
    for path in files:
        _check_image(path, preprocessing)
    held = min(max(HELD_BACK[0], round(len(files) / 10)), HELD_BACK[1])
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist()
    return Division(tuple(files[i] for i in order[held:]), tuple(files[i] for i in sorted(order[:held])))


def crops(
    files: Sequence[Path], preprocessing: Preprocessing, *, size: int, count: int, seed: int = 0
) -> TrainingStream:
    """Return random crops of images, as samples of a training run. Crop n depends only on (seed, n).

    An image is scaled by 0.8 to 1.25 and mirrored half of the time. Sides smaller than the crop are taken
    whole.

    Args:
        files, preprocessing: Images, and what the model expects of them.
        size: Side of a crop in pixels.
        count: Number of crops.
        seed: Seed of order, places and scales.
    """
    transforms = (
        RandomResize(probability=1, ratio=RESIZE),
        RandomCrop(probability=1, sizes=(size,), pad=False),
        HorizontalFlip(probability=0.5),
    )
    images = UnlabelledImages(files, preprocessing)
    return TrainingStream(images, transforms, seed=seed, length=count, statistics=preprocessing.statistics)


def batches(stream: TrainingStream, batch: int = 1) -> DataLoader[Tensor]:
    """Return the normalised pixels (batch, bands, H, W) of crops, in order, the same in each pass."""
    return DataLoader(
        stream,  # type: ignore[arg-type]
        batch_size=batch,
        collate_fn=stack_pixels,
        generator=torch.Generator(),  # otherwise it draws from the global generator
    )


def stack_pixels(samples: Sequence[TrainingSample]) -> Tensor:
    """Stack the pixels of samples, cut to the smallest height and width, in multiples of 32."""
    each = [sample["pixel_values"] for sample in samples]
    height, width = (
        max(MINIMUM_SIDE, min(pixels.shape[axis] for pixels in each) // MINIMUM_SIDE * MINIMUM_SIDE)
        for axis in (1, 2)
    )
    return torch.stack([pixels[:, :height, :width] for pixels in each])


def read_part(path: Path, preprocessing: Preprocessing, down: float = 0.5, across: float = 0.5) -> Tensor:
    """Read an image (bands, H, W), or of a larger one a part of 2048 x 2048 pixels.

    Args:
        path: Photograph or scene.
        preprocessing: What the model expects.
        down, across: Where the part lies, from 0 (top, left) to 1 (bottom, right).

    Raises:
        DataError: The file cannot be read, or its bands do not suit the model.
    """
    if not _is_raster(path):
        image = read_image(path).as_subclass(torch.Tensor)
        height, width = image.shape[1:]
        image = image[:, *_placed_part(height, width, down, across)]
    else:
        with open_raster(path) as source:
            rows, columns = _placed_part(source.height, source.width, down, across)
            box = Box(rows.start, columns.start, rows.stop, columns.stop)
            image = torch.from_numpy(fill_gaps(*read_box(source, box)))
    preprocessing.check(len(image), str(image.dtype).removeprefix("torch."), path)
    return image


def _placed_part(height: int, width: int, down: float, across: float) -> tuple[slice, slice]:
    top, left = (
        int(place * (max(0, side - LARGEST) + 0.999)) for side, place in ((height, down), (width, across))
    )
    return slice(top, min(height, top + LARGEST)), slice(left, min(width, left + LARGEST))


def _is_raster(path: Path) -> bool:
    return has_georeference(path) or is_no_photograph(path)


def _check_image(path: Path, preprocessing: Preprocessing) -> None:
    """Check the size of an image; only its header is read."""
    if _is_raster(path):
        with open_raster(path) as source:
            height, width = source.height, source.width
    else:
        try:
            with warnings.catch_warnings(action="ignore"), Pillow.open(path) as picture:
                width, height = picture.size
        except (OSError, Pillow.DecompressionBombError):  # read or refused by `read_image`
            height, width = read_image(path).shape[1:]
    if min(height, width) < MINIMUM_SIDE:
        raise DataError(f"{path}: {width} x {height} pixels; each side must have {MINIMUM_SIDE} at least")
