"""Labels of a scene: a mask raster in any CRS and grid, or polygons that are rasterised window by window."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError
from ccsegformer.raster.georeference import (
    footprint,
    is_georeferenced,
    outline,
    project,
    same_grid,
    window_transform,
)
from ccsegformer.raster.read import Box, image_bands, open_raster, read_box, reason_of

CLASS_COLUMNS = ("class", "class_id", "label")


class MaskRaster:
    """Raster of class ids, resampled to the scene's grid by nearest neighbour.

    Pixels that the mask does not cover, and pixels with its nodata value, are ignored. If the nodata value is
    a class id, or in the label map, it is read as that class.

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
        with open_raster(path) as mask:
            bands = len(image_bands(mask))
            if bands != 1 or mask.dtypes[0] == "float32":
                raise DataError(
                    f"{path}: a mask is one band of class ids, but this has {bands} of {mask.dtypes[0]}"
                )
            if not is_georeferenced(mask) or not is_georeferenced(scene):
                _check_same_size(mask, scene)
            elif not same_grid(mask, scene):
                _check_overlap(mask, scene)
                self._grid = {
                    "crs": scene.crs,
                    "transform": scene.transform,
                    "width": scene.width,
                    "height": scene.height,
                }

    def open(self) -> DatasetReader:
        """Open the mask on the scene's grid. The caller closes it.

        Raises:
            DataError: the mask cannot be warped to the scene's grid.
        """
        mask = open_raster(self.path)
        if self._grid is None:
            return mask
        # Coverage comes from the added alpha band, so that a class id declared as nodata stays a class.
        nodata = None if self._nodata_class(mask.nodata) is not None else mask.nodata
        options = {"resampling": Resampling.nearest, "src_nodata": nodata, "add_alpha": True}
        try:
            return WarpedVRT(mask, **self._grid, **options)
        except Exception as error:  # many types, as in `open_raster`
            raise DataError(f"{self.path}: cannot be warped to its scene: {reason_of(error)}") from error

    def read(self, source: DatasetReader, box: Box) -> NDArray[np.int32]:
        """Read the class ids (H, W) of a box inside the scene, unchecked, from what `open` returned."""
        (ids,), covered = read_box(source, box)
        labels = ids.astype(np.int32)
        nodata = self._nodata_class(source.nodata)
        labels[~covered] = self.classes.ignore_index if nodata is None else nodata
        return labels

    def _nodata_class(self, nodata: float | None) -> int | None:
        known = dict(self.classes.label_map) or range(len(self.classes))
        return int(nodata) if nodata is not None and nodata in known else None


def _check_same_size(mask: DatasetReader, scene: DatasetReader) -> None:
    """Check a mask or scene without georeference: neither may have one, and their sizes must agree."""
    if is_georeferenced(mask) or is_georeferenced(scene):
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
    if not footprint(mask, scene.crs).intersects(footprint(scene)):
        raise DataError(f"{mask.name}: does not overlap {scene.name}")


class PolygonFile(NamedTuple):
    """File of polygons that `read_polygon_file` has checked."""

    path: Path
    crs: str
    """CRS as WKT."""
    column: str | None
    """Column that names the class."""
    bounds: tuple[float, float, float, float] | None
    """Extent in the CRS, or None without polygons."""


class Polygons:
    """Polygons in any CRS, rasterised on the scene's grid.

    A pixel has the class of the last polygon that contains its centre, and class 0 outside all of them.

    Args:
        file: File returned by `read_polygon_file`.
        scene: Open raster that the polygons label.
        classes: Classes of the data set.

    Raises:
        DataError: the scene lacks a CRS or georeference, no transformation leads to the polygons' CRS, or the
            two do not overlap.
    """

    def __init__(self, file: PolygonFile, scene: DatasetReader, classes: Classes) -> None:
        import shapely

        self.file, self.path, self.classes = file, file.path, classes
        if scene.crs is None or not is_georeferenced(scene):
            missing = "georeference" if scene.crs else "CRS"
            raise DataError(f"{scene.name}: has no {missing}, which the polygons of {file.path} need")
        self.scene_crs, self.transform = scene.crs.to_wkt(), scene.transform
        extent = footprint(scene, CRS.from_wkt(file.crs))
        if file.bounds is not None and not shapely.box(*file.bounds).intersects(extent):
            raise DataError(f"{file.path}: does not overlap {scene.name}")

    def open(self) -> None:
        """Do nothing: each read opens the file and finds the polygons of its window by the file's index."""

    def read(self, source: object, box: Box) -> NDArray[np.int32]:
        """Rasterise the class ids (H, W) of a box inside the scene; `source` is ignored."""
        import shapely

        _, crs, column, _ = self.file
        transform = window_transform(self.transform, box.left, box.top)
        bounds = outline(transform, box.width, box.height, self.scene_crs, crs).bounds
        features, geometries, values = _read_features(self.path, column, bbox=bounds)
        labels = np.zeros((box.height, box.width), np.int32)
        shapes = []
        with _polygon_errors(self.path):
            ids = _class_ids(self.path, values, features, self.classes)
            for wkb, label in zip(geometries, ids, strict=True):
                shape = shapely.from_wkb(wkb)
                if shape is not None and not shape.is_empty:
                    shapes.append((project(shape, crs, self.scene_crs), label))
            if shapes:
                rasterize(shapes, out=labels, transform=transform)
        return labels


def read_polygon_file(path: Path, classes: Classes) -> PolygonFile:
    """Check a file of polygons, which must have one layer, and return what is needed to read it.

    The class of a polygon is in the first of the columns `class`, `class_id` and `label` that exists: a name,
    a class id, or instead an id in the label map if there is one, or the ignore index. Without such a column,
    every polygon is class 1 of two.

    Raises:
        DataError: the file cannot be read, has no CRS, or names a class that is not in `classes`.
    """
    import pyogrio

    with _polygon_errors(path):
        layers = pyogrio.list_layers(path)
        if len(layers) != 1:
            names = ", ".join(str(name) for name, _ in layers)
            raise DataError(f"{path}: must have one layer, not {len(layers)} ({names})")
        info = pyogrio.read_info(path, force_total_bounds=True, force_feature_count=True)
    column = _class_column(path, info, classes)
    if column:
        features, _, values = _read_features(path, column, read_geometry=False)
        _class_ids(path, values, features, classes)
    bounds = tuple(info["total_bounds"]) if info["features"] and info["total_bounds"] else None
    with _polygon_errors(path):
        return PolygonFile(path, CRS.from_user_input(info["crs"]).to_wkt(), column, bounds)


def _class_column(path: Path, info: dict[str, Any], classes: Classes) -> str | None:
    """Check CRS and geometry type of a layer, and return the column of its classes if there is one."""
    kind = info["geometry_type"]
    if not info["crs"]:
        raise DataError(f"{path}: has no CRS, which its polygons need")
    if kind and "Polygon" not in kind and kind != "Unknown":
        raise DataError(f"{path}: holds features of type {kind}, not polygons")
    column = next((name for name in CLASS_COLUMNS if name in info["fields"]), None)
    if column is None and len(classes) != 2:
        raise DataError(
            f"{path}: has no column {', '.join(CLASS_COLUMNS)} to tell {len(classes)} classes apart"
        )
    return column


def _read_features(path: Path, column: str | None, **options: Any) -> tuple[list[int], Any, list[Any]]:
    """Read feature ids, geometries as WKB, and classes as they are stored; 1 without a column."""
    import pyogrio

    with _polygon_errors(path):
        _, features, geometries, columns = pyogrio.raw.read(
            path, columns=[column] if column else [], return_fids=True, **options
        )
        return features.tolist(), geometries, columns[0].tolist() if column else [1] * len(features)


def _class_ids(path: Path, values: list[Any], features: list[int], classes: Classes) -> list[int]:
    """Convert class names or numbers, which may be stored as floats, to class ids."""
    known: dict[Any, int] = {name: label for label, name in enumerate(classes.names)}
    known |= dict(classes.label_map) or {label: label for label in range(len(classes))}
    known[classes.ignore_index] = classes.ignore_index
    for value, feature in zip(values, features, strict=True):
        if value not in known:
            raise DataError(
                f"{path}: feature {feature} has the class {value!r}, which is none of "
                f"{', '.join(classes.names)}"
            )
    return [known[value] for value in values]


@contextmanager
def _polygon_errors(path: Path) -> Iterator[None]:
    """Turn any error of GDAL into a one-line `DataError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # GDAL's warnings about damage that it can skip
            yield
    except DataError:
        raise
    except Exception as error:  # damage raises many types
        raise DataError(f"{path}: polygons cannot be read: {reason_of(error)}") from error
