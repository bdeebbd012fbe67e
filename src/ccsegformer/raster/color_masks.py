"""Mask rasters in colours: RGB bands or a palette."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader

from ccsegformer.data.colors import labels_of_colors
from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError
from ccsegformer.raster.read import Box, image_bands, read_stored


def check_colors(mask: DatasetReader, path: Path) -> NDArray[np.uint8] | None:
    """Check that a mask holds colours, and return those (256, 3) of its palette; None for RGB bands.

    Raises:
        DataError: neither 3 bands nor a palette of uint8.
    """
    bands = [mask.colorinterp[band - 1] for band in image_bands(mask)]
    if mask.dtypes[0] != "uint8" or not (len(bands) == 3 or bands == [ColorInterp.palette]):
        raise DataError(
            f"{path}: a mask in colours has 3 bands or a palette, of uint8, but this has {len(bands)} of "
            f"{mask.dtypes[0]}"
        )
    if len(bands) == 3:
        return None
    table = mask.colormap(image_bands(mask)[0])
    return np.array([table.get(value, (0, 0, 0))[:3] for value in range(256)], np.uint8)


def read_colors(
    source: DatasetReader,
    box: Box,
    colormap: NDArray[np.uint8] | None,
    classes: Classes,
    path: Path,
) -> NDArray[np.int32]:
    """Read the labels (H, W) of a box of a mask in colours; pixels without data are ignored.

    Args:
        source: Open mask on the scene's grid.
        box: Window inside the scene.
        colormap: What `check_colors` returned.
        classes: Classes with `colors`.
        path: Path of the mask for messages.

    Raises:
        DataError: the mask is damaged, or has a colour that is not listed.
    """
    listed = dict(classes.colors)
    value = source.nodata
    grey = (value,) * 3 if colormap is None or value is None else tuple(colormap[int(value)].tolist())
    stored, covered = read_stored(source, box, use_nodata=grey not in listed)
    colors = stored.astype(np.uint8).transpose(1, 2, 0) if colormap is None else colormap[stored[0]]
    colors[~covered] = classes.colors[0][0]  # any that is listed
    labels = labels_of_colors(colors, classes, path, top=box.top, left=box.left).astype(np.int32)
    labels[~covered] = classes.ignore_index
    return labels
