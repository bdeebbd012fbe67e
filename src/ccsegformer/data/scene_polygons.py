"""The labels of a scene from polygons in a GeoJSON or GeoPackage, rasterised window by window."""

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
from rasterio.features import rasterize
from rasterio.io import DatasetReader

from ccsegformer.data.footprints import footprint, is_georeferenced, moved, outline, project
from ccsegformer.data.labels import Classes
from ccsegformer.data.rasters import Box, reason_of
from ccsegformer.errors import DataError

CLASS_COLUMNS = ("class", "class_id", "label")


class PolygonFile(NamedTuple):
    """A GeoJSON or GeoPackage of polygons, looked through by `check_polygons`."""

    path: Path
    crs: str  # as WKT
    column: str | None  # of the classes
    bounds: tuple[float, float, float, float] | None  # None with no polygons


class Polygons:
    """Polygons in any CRS: a pixel has the class of the last that holds its centre, and class 0 outside them.

    Args:
        file: of `check_polygons`.
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


def check_polygons(path: Path, classes: Classes) -> PolygonFile:
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
