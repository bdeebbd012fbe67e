"""Labels of a scene: a mask raster in any CRS and grid, or polygons that are rasterised window by window."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Compression, Resampling
from rasterio.features import rasterize
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError
from ccsegformer.raster.color_masks import check_colors, read_colors
from ccsegformer.raster.georeference import (
    footprint,
    is_georeferenced,
    outline,
    project,
    reliable_bounds,
    same_grid,
    turned,
    window_transform,
)
from ccsegformer.raster.overlaps import warn_once
from ccsegformer.raster.read import MASK_DTYPES, Box, image_bands, open_raster, read_stored, reason_of

CLASS_COLUMNS = ("class", "class_id", "label")


class MaskRaster:
    """Raster of class ids or colours, resampled to the scene's grid by nearest neighbour.

    Pixels that the mask does not cover, and pixels with its nodata value, are ignored. If the nodata value is
    a class id, or in the label map, it is read as that class; likewise the grey of that value if masks are in
    colours.

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
        mask = open_raster(self.path, MASK_DTYPES)
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
        """Read the class ids (H, W) of a box inside the scene, unchecked, from what `open` returned.

        Masks in colours become labels.

        Raises:
            DataError: the mask is damaged, holds fractions, or a colour that the classes do not list.
        """
        if self.classes.colors:
            return read_colors(source, box, self._colormap, self.classes, self.path)
        nodata = self._nodata_class(source.nodata)
        (ids,), covered = read_stored(source, box, use_nodata=nodata is None)
        if ids.dtype.kind == "f" and (odd := ids != np.round(ids)).any():
            row, column = np.argwhere(odd)[0]
            raise DataError(
                f"{self.path}: {ids[row, column]} at row {box.top + row}, column {box.left + column} is no "
                "class id; masks hold whole numbers"
            )
        limits = np.iinfo(np.int32)
        labels = np.clip(ids, limits.min, limits.max).astype(np.int32)
        labels[~covered] = self.classes.ignore_index
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
    layer: str


class Polygons:
    """Polygons in any CRS, rasterised on the scene's grid.

    A pixel has the class of the last polygon that contains its centre, and class 0 outside all of them.

    Args:
        file: File returned by `read_polygon_file`.
        scene: Open raster that the polygons label.
        classes: Classes of the data set.
        shared: Whether the file labels other scenes too, so that it need not overlap this one.

    Attributes:
        overlaps: Whether the file is empty or overlaps the scene.

    Raises:
        DataError: the scene lacks a CRS or georeference, no transformation leads to the polygons' CRS, or the
            two do not overlap.
    """

    def __init__(
        self, file: PolygonFile, scene: DatasetReader, classes: Classes, *, shared: bool = False
    ) -> None:

        self.file, self.path, self.classes = file, file.path, classes
        if scene.crs is None or not is_georeferenced(scene):
            missing = "georeference" if scene.crs else "CRS"
            raise DataError(f"{scene.name}: has no {missing}, which the polygons of {file.path} need")
        self.scene_crs, self.transform = scene.crs.to_wkt(), scene.transform
        self.overlaps = self._overlap(footprint(scene))
        if not (shared or self.overlaps):
            raise DataError(f"{file.path}: does not overlap {scene.name}")

    def _overlap(self, extent: Any) -> bool:
        """Return whether the polygons' bounds meet the scene, in the CRS of the one or of the other."""
        import shapely

        if self.file.bounds is None:
            return True
        bounds = shapely.box(*self.file.bounds)
        there = reliable_bounds(extent, self.scene_crs, self.file.crs)
        if there is not None:  # a box, as an outline across the antimeridian is torn in other CRSs
            here = extent if self.scene_crs == self.file.crs else shapely.box(*there)
            return any(bounds.intersects(copy) for copy in turned(here, self.file.crs))
        points = shapely.get_coordinates(
            project(bounds.segmentize(bounds.length / 80), self.file.crs, self.scene_crs)
        )
        points = points[np.isfinite(points).all(axis=1)]
        found = shapely.MultiPoint(points).envelope
        return any(found.intersects(copy) for copy in turned(extent, self.scene_crs))

    def open(self) -> None:
        """Do nothing: each read opens the file and finds the polygons of its window by the file's index."""

    def read(self, source: object, box: Box) -> NDArray[np.int32]:
        """Rasterise the class ids (H, W) of a box inside the scene; `source` is ignored."""
        import shapely

        transform = window_transform(self.transform, box.left, box.top)
        window = outline(transform, box.width, box.height, None, None)
        features, geometries, values = self._features(window)
        labels = np.zeros((box.height, box.width), np.int32)
        shapes = []
        with _polygon_errors(self.path):
            ids = _class_ids(self.path, values, features, self.classes)
            for place in np.argsort(features):  # indices give another order
                for shape in _polygons_in(shapely.from_wkb(geometries[place])):
                    found = turned(project(shape, self.file.crs, self.scene_crs), self.scene_crs)
                    shapes += [(copy, ids[place]) for copy in found if _meet(copy.bounds, window.bounds)]
            if shapes:
                rasterize(shapes, out=labels, transform=transform)
        return labels

    def _features(self, window: Any) -> tuple[list[int], list[Any], list[Any]]:
        """Read what may touch a window, given by its outline in the scene's CRS."""
        import shapely

        if self.file.bounds is None:
            return [], [], []
        bounds = reliable_bounds(window, self.scene_crs, self.file.crs)
        found: dict[int, tuple[Any, Any]] = {}
        boxes = (
            [None]
            if bounds is None
            else [copy.bounds for copy in turned(shapely.box(*bounds), self.file.crs)]
        )
        for bbox in boxes:
            if bbox is None or _meet(bbox, self.file.bounds):
                features, geometries, values = _read_features(
                    self.path, self.file.column, layer=self.file.layer, bbox=bbox
                )
                found |= dict(zip(features, zip(geometries, values, strict=True), strict=True))
        return list(found), [shape for shape, _ in found.values()], [value for _, value in found.values()]


def _meet(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two bounds (left, bottom, right, top) touch."""
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _polygons_in(shape: Any) -> list[Any]:
    """Return the polygons among the parts of a geometry, which may be None."""
    import shapely

    if shape is None or shape.is_empty:
        return []
    return [part for part in shapely.get_parts(shapely.get_parts(shape)) if part.geom_type == "Polygon"]


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
        layer = _layer(path)
        info = pyogrio.read_info(path, layer=layer, force_total_bounds=True, force_feature_count=True)
    column = _class_column(path, info, classes) if info["features"] else None
    if column:
        features, _, values = _read_features(path, column, layer=layer, read_geometry=False)
        _class_ids(path, values, features, classes)
    if info["features"]:
        _check_geometries(path, layer, info["geometry_type"])
    bounds = tuple(info["total_bounds"]) if info["features"] and info["total_bounds"] else None
    with _polygon_errors(path):
        if not info["features"] and not info["crs"]:
            return PolygonFile(path, CRS.from_epsg(4326).to_wkt(), None, None, layer)
        return PolygonFile(path, CRS.from_user_input(info["crs"]).to_wkt(), column, bounds, layer)


def _layer(path: Path) -> str:
    """Return the name of the only layer; tables without geometry, such as QGIS's `layer_styles`, are none."""
    import pyogrio

    if path.suffix.lower() == ".parquet" and "Parquet" not in pyogrio.list_drivers():
        raise DataError(f"{path}: GDAL as installed here reads no Parquet; convert it to .gpkg or .fgb")
    found = [(str(name), kind) for name, kind in pyogrio.list_layers(path)]
    layers = [name for name, kind in found if kind is not None] or [name for name, _ in found]
    if len(layers) != 1:
        raise DataError(f"{path}: must have one layer, not {len(layers)} ({', '.join(layers)})")
    return layers[0]


def _check_geometries(path: Path, layer: str, kind: str | None) -> None:
    """Warn of points and lines among the polygons of a layer, and refuse it if there are only such."""
    import shapely

    if kind and "Polygon" in kind:
        return
    features, geometries, _ = _read_features(path, None, layer=layer)
    with _polygon_errors(path):
        shapes = [shapely.from_wkb(wkb) for wkb in geometries]
    others = [
        (feature, shape.geom_type)
        for feature, shape in zip(features, shapes, strict=True)
        if shape is not None and not shape.is_empty and not _polygons_in(shape)
    ]
    if others:
        first = f"feature {others[0][0]} is a {others[0][1]}"
        if len(others) == len(features):
            raise DataError(f"{path}: holds no polygons; {first}")
        warn_once(f"{path}: {len(others)} features that are no polygons are ignored; {first}")


def _class_column(path: Path, info: dict[str, Any], classes: Classes) -> str | None:
    """Check CRS and geometry type of a layer, and return the column of its classes if there is one."""
    kind = info["geometry_type"]
    if not info["crs"]:
        raise DataError(f"{path}: has no CRS, which its polygons need")
    if kind and any(word in kind for word in ("Point", "Line")):
        raise DataError(f"{path}: holds features of type {kind}, not polygons")
    columns = [str(name) for name in info["fields"]]
    found = [name for wanted in CLASS_COLUMNS for name in columns if name.lower() == wanted]
    if not found and len(classes) != 2:
        raise DataError(
            f"{path}: has no column {', '.join(CLASS_COLUMNS)} to tell {len(classes)} classes apart"
        )
    return found[0] if found else None


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
