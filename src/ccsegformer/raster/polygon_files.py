"""Files of polygons: their layer, the column of their classes, and what they hold."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rasterio.crs import CRS

from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError
from ccsegformer.raster._geoparquet import read_geoparquet
from ccsegformer.raster.overlaps import warn_once
from ccsegformer.raster.read import reason_of

CLASS_COLUMNS = ("class", "class_id", "label")
PARQUET = ".parquet"


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


def read_polygon_file(
    path: Path, classes: Classes, *, layer: str | None = None, column: str | None = None
) -> PolygonFile:
    """Check a file of polygons and return what is needed to read it.

    The class of a polygon is a name, a class id as number or text, or instead an id in the label map if there
    is one, or the ignore index. Polygons without a class, NULL or blank, are ignored, with a warning.

    Args:
        path: Path of the file.
        classes: Classes of the data set.
        layer: Name of the layer; by default the only one.
        column: Column of the class, in any case; by default the first of `class`, `class_id` and `label` that
            exists. Without one of these, every polygon is class 1 of two.

    Raises:
        DataError: the file cannot be read, has no CRS, has no such layer or column, or names a class that is
            not in `classes`.
    """
    with polygon_errors(path):
        layer = _layer(path, layer)
        info = _layer_info(path, layer)
    found = _class_column(path, info, classes, column) if info["features"] else None
    if found:
        features, _, values = read_features(path, found, layer=layer, read_geometry=False)
        with polygon_errors(path):
            _check_classes(path, values, features, classes)
    if info["features"]:
        _check_geometries(path, layer, info["geometry_type"])
    bounds = tuple(info["total_bounds"]) if info["features"] and info["total_bounds"] else None
    with polygon_errors(path):
        if not info["features"] and not info["crs"]:
            return PolygonFile(path, CRS.from_epsg(4326).to_wkt(), None, None, layer)
        return PolygonFile(path, CRS.from_user_input(info["crs"]).to_wkt(), found, bounds, layer)


def read_features(
    path: Path,
    column: str | None,
    *,
    layer: str,
    bbox: tuple[float, float, float, float] | None = None,
    read_geometry: bool = True,
) -> tuple[list[int], Any, list[Any]]:
    """Read feature ids, geometries as WKB, and classes as they are stored; 1 without a column."""
    import pyogrio

    with polygon_errors(path):
        if path.suffix.lower() == PARQUET:
            return read_geoparquet(path).read(column, bbox)
        options = {"layer": layer, "bbox": bbox, "read_geometry": read_geometry, "return_fids": True}
        columns = [column] if column else []
        _, features, geometries, values = pyogrio.raw.read(path, columns=columns, **options)
        return features.tolist(), geometries, values[0].tolist() if column else [1] * len(features)


def class_ids(path: Path, values: Sequence[Any], features: Sequence[int], classes: Classes) -> list[int]:
    """Convert class names or numbers, which may be stored as floats or text, to class ids.

    NULL and blank text become the ignore index.

    Raises:
        DataError: a value is no class; the message names the feature.
    """
    known: dict[Any, int] = {name: label for label, name in enumerate(classes.names)}
    known |= dict(classes.label_map) or {label: label for label in range(len(classes))}
    known[classes.ignore_index] = classes.ignore_index
    ids = []
    for value, feature in zip(values, features, strict=True):
        wanted = _number(value) if value not in known else value
        if wanted in known:
            ids.append(known[wanted])
        elif _is_null(value):
            ids.append(classes.ignore_index)
        else:
            raise DataError(
                f"{path}: feature {feature} has the class {value!r}, which is none of "
                f"{', '.join(classes.names)}"
            )
    return ids


def polygons_in(shape: Any) -> list[Any]:
    """Return the polygons among the parts of a geometry, which may be None."""
    import shapely

    if shape is None or shape.is_empty:
        return []
    return [part for part in shapely.get_parts(shapely.get_parts(shape)) if part.geom_type == "Polygon"]


@contextmanager
def polygon_errors(path: Path) -> Iterator[None]:
    """Turn any error of GDAL into a one-line `DataError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # GDAL's warnings about damage that it can skip
            yield
    except (DataError, ImportError):
        raise
    except Exception as error:  # damage raises many types
        raise DataError(f"{path}: polygons cannot be read: {reason_of(error)}") from error


def _layer_info(path: Path, layer: str) -> dict[str, Any]:
    """Return what `pyogrio.read_info` says of a layer."""
    import pyogrio

    if path.suffix.lower() == PARQUET:
        return read_geoparquet(path).info()
    info: dict[str, Any] = pyogrio.read_info(
        path, layer=layer, force_total_bounds=True, force_feature_count=True
    )
    return info


def _layer(path: Path, wanted: str | None) -> str:
    """Return the name of the layer that is wanted, or of the only one.

    Tables without geometry, such as QGIS's `layer_styles`, are no layers.
    """
    import pyogrio

    if path.suffix.lower() == PARQUET:
        layers = [path.stem]
    else:
        found = [(str(name), kind) for name, kind in pyogrio.list_layers(path)]
        layers = [name for name, kind in found if kind is not None] or [name for name, _ in found]
    listed = ", ".join(layers)
    if wanted is None and len(layers) != 1:
        raise DataError(f"{path}: has {len(layers)} layers ({listed}); choose one with --label-layer")
    if wanted is not None and wanted not in layers:
        raise DataError(f"{path}: has no layer {wanted!r} of polygons; its layers are {listed}")
    return wanted or layers[0]


def _check_geometries(path: Path, layer: str, kind: str | None) -> None:
    """Warn of points and lines among the polygons of a layer, and refuse it if there are only such."""
    import shapely

    if kind and "Polygon" in kind:
        return
    features, geometries, _ = read_features(path, None, layer=layer)
    with polygon_errors(path):
        shapes = [shapely.from_wkb(wkb) for wkb in geometries]
    others = [
        (feature, shape.geom_type)
        for feature, shape in zip(features, shapes, strict=True)
        if shape is not None and not shape.is_empty and not polygons_in(shape)
    ]
    if others:
        first = f"feature {others[0][0]} is a {others[0][1]}"
        if len(others) == len(features):
            raise DataError(f"{path}: holds no polygons; {first}")
        warn_once(f"{path}: {len(others)} features that are no polygons are ignored; {first}")


def _class_column(path: Path, info: dict[str, Any], classes: Classes, wanted: str | None) -> str | None:
    """Check CRS and geometry type of a layer, and return the column of its classes if there is one."""
    kind = info["geometry_type"]
    if not info["crs"]:
        raise DataError(f"{path}: has no CRS, which its polygons need")
    if kind and any(word in kind for word in ("Point", "Line")):
        raise DataError(f"{path}: holds features of type {kind}, not polygons")
    columns = [str(name) for name in info["fields"]]
    if wanted is not None:
        return _chosen_column(path, columns, wanted)
    found = [name for each in CLASS_COLUMNS for name in columns if name.lower() == each]
    if not found and len(classes) != 2:
        raise DataError(
            f"{path}: has no column {', '.join(CLASS_COLUMNS)} to tell {len(classes)} classes apart; choose "
            f"another with --label-column ({_listed(columns)})"
        )
    return found[0] if found else None


def _chosen_column(path: Path, columns: list[str], wanted: str) -> str:
    """Return the column of this name, or else of this name in another case."""
    found = [name for name in columns if name == wanted]
    found = found or [name for name in columns if name.lower() == wanted.lower()]
    if not found:
        raise DataError(f"{path}: has no column {wanted!r} ({_listed(columns)})")
    return found[0]


def _listed(columns: list[str]) -> str:
    return f"the columns are {', '.join(columns)}" if columns else "it has no columns"


def _check_classes(path: Path, values: list[Any], features: list[int], classes: Classes) -> None:
    """Check the classes of all features, and warn of those that have none."""
    class_ids(path, values, features, classes)
    empty = [
        feature
        for feature, value in zip(features, values, strict=True)
        if value not in classes.names and _is_null(value)
    ]
    if empty:
        warn_once(
            f"{path}: {len(empty)} of {len(features)} features have no class, the first is feature "
            f"{empty[0]}; their pixels are ignored"
        )


def _number(value: Any) -> int | None:
    """Return the whole number that a text stands for, or None."""
    is_number = isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.0*)?", value.strip(), re.ASCII)
    return int(value.strip().partition(".")[0]) if is_number else None


def _is_null(value: Any) -> bool:
    """Return whether a value is NULL, which pyogrio reads as NaN in columns of numbers, or blank."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())
