"""The labels of a scene from a mask raster, in whatever CRS and grid it is."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from ccsegformer.data.footprints import footprint, is_georeferenced, same_grid
from ccsegformer.data.labels import Classes
from ccsegformer.data.rasters import Box, hold_raster, image_bands, read_box, reason_of
from ccsegformer.errors import DataError


class MaskRaster:
    """A raster of class ids in any CRS and grid; it is read on the scene's, by the nearest pixel.

    What it does not cover is ignored, and so is its nodata value unless that is the id of a class.

    Args:
        path: the mask.
        scene: the raster that it labels, open.
        classes: of the data set.

    Raises:
        DataError: not a mask, or one that cannot be laid over the scene; the message says why.
    """

    def __init__(self, path: Path, scene: DatasetReader, classes: Classes) -> None:
        self.path, self.classes = path, classes
        self._grid: dict[str, Any] | None = None
        with hold_raster(path) as mask:
            bands = len(image_bands(mask))
            if bands != 1 or mask.dtypes[0] == "float32":
                raise DataError(
                    f"{path}: a mask is one band of class ids, but this has {bands} of {mask.dtypes[0]}"
                )
            if not is_georeferenced(mask) or not is_georeferenced(scene):
                if is_georeferenced(mask) or is_georeferenced(scene):
                    bare, other = (scene, mask) if is_georeferenced(mask) else (mask, scene)
                    raise DataError(f"{bare.name}: has no georeference, which {other.name} has; give it one")
                if mask.shape != scene.shape:
                    raise DataError(
                        f"{path}: {mask.width}x{mask.height} pixels for {scene.width}x{scene.height} of "
                        f"{scene.name}, and no georeference to align them by"
                    )
            elif not same_grid(mask, scene):
                if mask.crs is None or scene.crs is None:
                    bare, other = (mask, scene) if mask.crs is None else (scene, mask)
                    raise DataError(
                        f"{bare.name}: has no CRS and another grid than {other.name}; give it one"
                    )
                if not footprint(mask, scene.crs).intersects(footprint(scene)):
                    raise DataError(f"{path}: does not overlap {scene.name}")
                self._grid = {
                    "crs": scene.crs,
                    "transform": scene.transform,
                    "width": scene.width,
                    "height": scene.height,
                }

    def open(self) -> DatasetReader:
        """The mask on the scene's grid; whoever asks closes it.

        Raises:
            DataError: it cannot be brought there.
        """
        mask = hold_raster(self.path)
        if self._grid is None:
            return mask
        # The alpha band says what is covered; a class that is called nodata is a class all the same.
        nodata = None if self._nodata_class(mask.nodata) is not None else mask.nodata
        options = {"resampling": Resampling.nearest, "src_nodata": nodata, "add_alpha": True}
        try:
            return WarpedVRT(mask, **self._grid, **options)
        except Exception as error:  # rasterio's own secret, as in `hold_raster`
            raise DataError(f"{self.path}: cannot be laid over its scene: {reason_of(error)}") from error

    def read(self, source: DatasetReader, box: Box) -> NDArray[np.int32]:
        """Class ids (H, W) of a box inside the scene, unchecked; `source` is what `open` gave."""
        (ids,), covered = read_box(source, box)
        labels = ids.astype(np.int32)
        nodata = self._nodata_class(source.nodata)
        labels[~covered] = self.classes.ignore_index if nodata is None else nodata
        return labels

    def _nodata_class(self, nodata: float | None) -> int | None:
        return int(nodata) if nodata is not None and nodata in range(len(self.classes)) else None
