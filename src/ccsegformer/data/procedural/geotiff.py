"""Write procedural scenes as GeoTIFFs with masks, in the layout of real scenes."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.io import MemoryFile
from rich.progress import track

from ccsegformer.data.labels import write_classes
from ccsegformer.data.procedural.scenes import MIN_SIZE, PROCEDURAL_CLASSES, SPLITS, scene
from ccsegformer.errors import DataError, OutputError
from ccsegformer.files import write_atomically

CRS = "EPSG:32632"  # WGS 84 / UTM zone 32N
RESOLUTION = 0.25  # metres per pixel; a car is five metres long
EAST, NORTH = 600_000.0, 5_300_000.0
ROW = 10  # scenes per row


def write_scenes(
    folder: str | Path,
    *,
    training: int,
    validation: int,
    size: int = 2048,
    seed: int = 0,
    progress: bool = False,
) -> None:
    """Write scenes of `size` x `size` pixels to a new folder; every machine writes the same ones.

    `SPLIT/NAME.tif` is 8-bit RGB. `SPLIT/NAME_mask.tif` holds the class ids, with a colour table and the
    ignore index as nodata. `classes.json` is written last. The pictures are those of `ProceduralScenes`. On
    the map they lie side by side with gaps, training north of validation. Drawing takes 120 bytes of memory
    per pixel.

    Raises:
        DataError: No scenes, or a size or seed that is too small.
        OutputError: The folder is not empty or cannot be written.
    """
    folder = Path(folder)
    if min(training, validation) < 0 or training + validation < 1 or size < MIN_SIZE or seed < 0:
        raise DataError(
            f"procedural: {training} training and {validation} validation scenes, size {size}, seed {seed}; "
            f"choose at least one scene, size {MIN_SIZE} and seed 0"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder}: is not an empty folder; choose another or delete it")
    places = [
        (split, number)
        for split, count in zip(SPLITS, (training, validation), strict=True)
        for number in range(count)
    ]
    for split, number in track(places, "Drawing", disable=not progress, transient=True):
        image, mask = scene(len(SPLITS) * seed + SPLITS.index(split), number, size)
        path = folder / split / f"{split}_{number:05d}.tif"
        transform = _scene_transform(split, number, size)
        _write_geotiff(path, np.moveaxis(image, 2, 0), transform, predictor=2)
        _write_geotiff(
            path.with_stem(f"{path.stem}_mask"), mask[None], transform, nodata=PROCEDURAL_CLASSES.ignore_index
        )
    write_classes(PROCEDURAL_CLASSES, folder / "classes.json")


def _scene_transform(split: str, number: int, size: int) -> Affine:
    """Return the position of a scene: rows go north for training and south for validation."""
    step = 1.25 * size * RESOLUTION
    row, column = divmod(number, ROW)
    up = row + 1 if split == SPLITS[0] else -row
    return Affine(RESOLUTION, 0, EAST + column * step, 0, -RESOLUTION, NORTH + up * step)


def _write_geotiff(path: Path, bands: NDArray[np.uint8], transform: Affine, **options: object) -> None:
    """Write bands (C, H, W) in tiles; a single band gets the colours of the classes."""
    count, height, width = bands.shape
    options |= {"crs": CRS, "transform": transform, "compress": "deflate"}
    options |= {"tiled": True, "blockxsize": 256, "blockysize": 256}
    with MemoryFile() as file:  # in memory first: GDAL does not report a full disk
        with file.open(
            driver="GTiff", count=count, height=height, width=width, dtype="uint8", **options
        ) as target:
            target.write(bands)
            if count == 1:
                target.write_colormap(1, dict(enumerate(PROCEDURAL_CLASSES.palette)))
            else:
                target.update_tags(TIFFTAG_IMAGEDESCRIPTION="A generated scene: no real place looks like it")
        write_atomically(path, file.read())
