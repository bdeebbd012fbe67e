"""The labels of a scene: a mask raster in any CRS and grid, or polygons, rasterised window by window."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError
from ccsegformer.raster.georeference import footprint, is_georeferenced, moved, outline, project, same_grid
from ccsegformer.raster.read import Box, hold_raster, image_bands, read_box, reason_of


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


CLASS_COLUMNS = ("class", "class_id", "label")


class PolygonFile(NamedTuple):
    """A GeoJSON or GeoPackage of polygons, looked through by `read_polygon_file`."""

    path: Path
    crs: str  # as WKT
    column: str | None  # of the classes
    bounds: tuple[float, float, float, float] | None  # None with no polygons


class Polygons:
    """Polygons in any CRS: a pixel has the class of the last that holds its centre, and class 0 outside them.

    Args:
        file: of `read_polygon_file`.
        scene: the raster that it labels, open.
        classes: of the data set.

    Raises:
        DataError: the polygons cannot be placed on the scene, or none is anywhere near.
    """

    def __init__(self, file: PolygonFile, scene: DatasetReader, classes: Classes) -> None:
        self.file, self.path, self.classes = file, file.path, classes
        if scene.crs is None or not is_georeferenced(scene):
            raise DataError(
                f"{scene.name}: has no {'georeference' if scene.crs else 'CRS'}, without which the polygons "
                f"of {file.path} have no place"
            )
        self.scene_crs, self.transform = scene.crs.to_wkt(), scene.transform
        extent = footprint(scene, CRS.from_wkt(file.crs))
        if file.bounds is not None and not shapely.box(*file.bounds).intersects(extent):
            raise DataError(f"{file.path}: does not overlap {scene.name}")

    def open(self) -> None:
        """Nothing is kept open: a window's polygons are found by the file's index."""

    def read(self, source: object, box: Box) -> NDArray[np.int32]:
        """Class ids (H, W) of a box inside the scene."""
        _, crs, column, _ = self.file
        transform = moved(self.transform, box.left, box.top)
        bounds = outline(transform, box.width, box.height, self.scene_crs, crs).bounds
        features, geometries, values = _read(self.path, column, bbox=bounds)
        labels = np.zeros((box.height, box.width), np.int32)
        shapes = []
        with _in_one_line(self.path):
            ids = _class_ids(self.path, values, features, self.classes)
            for wkb, label in zip(geometries, ids, strict=True):
                shape = shapely.from_wkb(wkb)
                if shape is not None and not shape.is_empty:
                    shapes.append((project(shape, crs, self.scene_crs), label))
            if shapes:
                rasterize(shapes, out=labels, transform=transform)
        return labels


def read_polygon_file(path: Path, classes: Classes) -> PolygonFile:
    """Look through a file of polygons, which has one layer.

    A polygon's class is that of the first column among `class`, `class_id` and `label`: a name, a class id or
    the ignore index. Without one, every polygon is class 1 of two.

    Raises:
        DataError: the file cannot be read or placed, or has a class that is none of `classes`.
    """
    with _in_one_line(path):
        layers = pyogrio.list_layers(path)
        if len(layers) != 1:
            names = ", ".join(str(name) for name, _ in layers)
            raise DataError(f"{path}: must have one layer, not {len(layers)} ({names})")
        info = pyogrio.read_info(path, force_total_bounds=True, force_feature_count=True)
    if not info["crs"]:
        raise DataError(f"{path}: has no CRS, without which its polygons have no place")
    if (
        info["geometry_type"]
        and "Polygon" not in info["geometry_type"]
        and info["geometry_type"] != "Unknown"
    ):
        raise DataError(f"{path}: holds features of type {info['geometry_type']}, not polygons")
    column = next((name for name in CLASS_COLUMNS if name in info["fields"]), None)
    if column is None and len(classes) != 2:
        raise DataError(
            f"{path}: has no column {', '.join(CLASS_COLUMNS)} to tell {len(classes)} classes apart"
        )
    if column:
        features, _, values = _read(path, column, read_geometry=False)
        _class_ids(path, values, features, classes)
    bounds = tuple(info["total_bounds"]) if info["features"] and info["total_bounds"] else None
    with _in_one_line(path):
        return PolygonFile(path, CRS.from_user_input(info["crs"]).to_wkt(), column, bounds)


def _read(path: Path, column: str | None, **options: Any) -> tuple[list[int], Any, list[Any]]:
    """Feature ids, geometries as WKB, and classes as they are stored; 1 without a column."""
    with _in_one_line(path):
        _, features, geometries, columns = pyogrio.raw.read(
            path, columns=[column] if column else [], return_fids=True, **options
        )
        return features.tolist(), geometries, columns[0].tolist() if column else [1] * len(features)


def _class_ids(path: Path, values: list[Any], features: list[int], classes: Classes) -> list[int]:
    """Labels of polygons by name or number, which may be stored as a float."""
    known: dict[Any, int] = {name: label for label, name in enumerate(classes.names)}
    known |= {label: label for label in [*range(len(classes)), classes.ignore_index]}
    for value, feature in zip(values, features, strict=True):
        if value not in known:
            raise DataError(
                f"{path}: feature {feature} has the class {value!r}, which is none of "
                f"{', '.join(classes.names)}"
            )
    return [known[value] for value in values]


@contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # what GDAL can do without
            yield
    except DataError:
        raise
    except Exception as error:  # damage shows in many kinds
        raise DataError(f"{path}: not polygons that can be read: {reason_of(error)}") from error
