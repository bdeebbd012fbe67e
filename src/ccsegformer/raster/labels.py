"""Labels of a scene as a mask: a raster of class ids in any CRS and grid."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import Compression, Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError
from ccsegformer.raster.color_masks import check_colors, read_colors
from ccsegformer.raster.georeference import footprint, full_turn, is_georeferenced, same_grid, turned
from ccsegformer.raster.read import MASK_DTYPES, Box, image_bands, open_raster, read_stored, reason_of


class Copies(NamedTuple):
    """Open masks on the scene's grid: one, or the same one turned about the Earth in several ways."""

    masks: list[DatasetReader]

    def close(self) -> None:
        """Close all masks."""
        for mask in self.masks:
            mask.close()


class MaskRaster:
    """Raster of class ids or colours, resampled to the scene's grid by nearest neighbour.

    Pixels that the mask does not cover, and pixels with its nodata value, are ignored. If the nodata value is
    a class id, or in the label map, it is read as that class; likewise the grey of that value if masks are in
    colours. A PNG without a world file has the scene's pixels.

    Args:
        path: Path of the mask.
        scene: Open raster that the mask labels.
        classes: Classes of the data set.

    Raises:
        DataError: the file is not a mask, or cannot be aligned with the scene.
    """

    def __init__(self, path: Path, scene: DatasetReader, classes: Classes) -> None:
        self.path, self.classes = path, classes
        self._grid: dict[str, Any] | None = None
        self._shifts: list[float] = [0.0]
        with open_raster(path, MASK_DTYPES) as mask:
            if mask.compression == Compression.jpeg:
                raise DataError(
                    f"{path}: compressed as a JPEG, which changes classes; save masks with DEFLATE"
                )
            bands = len(image_bands(mask))
            self._colormap = check_colors(mask, path) if classes.colors else None
            if bands != 1 and not classes.colors:
                raise DataError(
                    f"{path}: a mask is one band of class ids, but this has {bands} of {mask.dtypes[0]}; "
                    "list its colours in classes.json if they are classes"
                )
            if not is_georeferenced(mask) or not is_georeferenced(scene):
                _check_same_size(mask, scene)
            elif not same_grid(mask, scene):
                _check_overlap(mask, scene)
                self._shifts = _shifts(mask, scene)
                self._grid = {
                    "crs": scene.crs,
                    "transform": scene.transform,
                    "width": scene.width,
                    "height": scene.height,
                }

    def open(self) -> Copies:
        """Open the mask on the scene's grid. The caller closes it.

        Raises:
            DataError: the mask cannot be warped to the scene's grid.
        """
        mask = open_raster(self.path, MASK_DTYPES)
        if self._grid is None:
            return Copies([mask])
        # Coverage comes from the added alpha band, so that a class id declared as nodata stays a class.
        nodata = None if self._nodata_class(mask.nodata) is not None else mask.nodata
        options = {"resampling": Resampling.nearest, "src_nodata": nodata, "add_alpha": True}
        try:
            return Copies([self._warped(mask, shift, options) for shift in self._shifts])
        except Exception as error:  # many types, as in `open_raster`
            raise DataError(f"{self.path}: cannot be warped to its scene: {reason_of(error)}") from error

    def _warped(self, mask: DatasetReader, shift: float, options: dict[str, Any]) -> DatasetReader:
        """Warp the mask, moved east by `shift`, to the scene's grid."""
        a, b, c, d, e, f = mask.transform[:6]
        placed = {"src_transform": Affine(a, b, c + shift, d, e, f)} if shift else {}
        return WarpedVRT(mask, **(self._grid or {}), **options, **placed)

    def read(self, source: Copies, box: Box) -> NDArray[np.int32]:
        """Read the class ids (H, W) of a box inside the scene, unchecked, from what `open` returned.

        Masks in colours become labels.

        Raises:
            DataError: the mask is damaged, holds fractions, or a colour that the classes do not list.
        """
        first, *others = source.masks
        labels, covered = self._read_copy(first, box)
        for other in others:
            more, there = self._read_copy(other, box)
            labels[there & ~covered] = more[there & ~covered]
            covered |= there
        labels[~covered] = self.classes.ignore_index
        return labels

    def _read_copy(self, source: DatasetReader, box: Box) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Read class ids (H, W) and where there are any."""
        if self.classes.colors:
            labels = read_colors(source, box, self._colormap, self.classes, self.path)
            return labels, labels != self.classes.ignore_index
        nodata = self._nodata_class(source.nodata)
        (ids,), covered = read_stored(source, box, use_nodata=nodata is None)
        if ids.dtype.kind == "f" and (odd := ids != np.round(ids)).any():
            row, column = np.argwhere(odd)[0]
            raise DataError(
                f"{self.path}: {ids[row, column]} at row {box.top + row}, column {box.left + column} is no "
                "class id; masks hold whole numbers"
            )
        limits = np.iinfo(np.int32)
        return np.clip(ids, limits.min, limits.max).astype(np.int32), covered

    def _nodata_class(self, nodata: float | None) -> int | None:
        known = dict(self.classes.label_map) or range(len(self.classes))
        return int(nodata) if nodata is not None and nodata in known else None


def _check_same_size(mask: DatasetReader, scene: DatasetReader) -> None:
    """Check a mask or scene without georeference: of the same size, and, but for PNG masks, both without."""
    is_bare_png = mask.driver == "PNG" and not is_georeferenced(mask)
    if not is_bare_png and (is_georeferenced(mask) or is_georeferenced(scene)):
        bare, other = (scene, mask) if is_georeferenced(mask) else (mask, scene)
        raise DataError(f"{bare.name}: has no georeference, which {other.name} has; give it one")
    if mask.shape != scene.shape:
        raise DataError(
            f"{mask.name}: {mask.width}x{mask.height} pixels for {scene.width}x{scene.height} of "
            f"{scene.name}, and no georeference to align them by"
        )


def _check_overlap(mask: DatasetReader, scene: DatasetReader) -> None:
    """Check that a mask in another grid has a CRS, as its scene does, and overlaps the scene."""
    if mask.crs is None or scene.crs is None:
        bare, other = (mask, scene) if mask.crs is None else (scene, mask)
        raise DataError(f"{bare.name}: has no CRS and another grid than {other.name}; give it one")
    if not (_meets(mask, scene) or _meets(scene, mask)):
        raise DataError(f"{mask.name}: does not overlap {scene.name}")


def _meets(one: DatasetReader, other: DatasetReader) -> bool:
    """Return whether two rasters overlap in the CRS of `other`, by any number of turns about the Earth."""
    outlines = turned(footprint(one, other.crs), other.crs.to_wkt())
    return any(outline.intersects(footprint(other)) for outline in outlines)


def _shifts(mask: DatasetReader, scene: DatasetReader) -> list[float]:
    """Return by how much to move a mask to the east to meet the scene: whole turns, in its own units."""
    turn = full_turn(mask.crs.to_wkt())
    if turn is None:
        return [0.0]
    left, right = -turn / 2, turn / 2  # as projected CRSs give longitudes
    scene_turn = full_turn(scene.crs.to_wkt())
    if scene_turn is not None:
        left, _, right, _ = (bound / scene_turn * turn for bound in footprint(scene).bounds)
    west, _, east, _ = footprint(mask).bounds
    return [shift for shift in (0.0, turn, -turn) if west + shift < right and east + shift > left] or [0.0]
