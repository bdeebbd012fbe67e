"""Write the regions of a label map as polygons, to GeoPackage, GeoJSON or GeoParquet, in bounded memory."""

import io
import json
import warnings
from collections.abc import Iterator
from itertools import islice
from math import isfinite, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from pyproj.exceptions import ProjError
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from shapely.geometry import mapping, shape

from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError, OutputError, optional_imports
from ccsegformer.files import written_aside
from ccsegformer.raster._areas import MapGeometry, map_geometry
from ccsegformer.raster._regions import NO_LABEL, trace_regions
from ccsegformer.raster.read import Box, open_raster, reason_of
from ccsegformer.raster.source_files import gdal_options

SUFFIXES = (".gpkg", ".geojson", ".parquet")
JOURNALS = ("-wal", "-shm", "-journal")
"""What SQLite appends to the name of a GeoPackage for changes that a program has not yet put into it."""
STRIP_PIXELS = 8_000_000
"""Number of pixels read and traced at a time."""
BATCH = 2000
"""Number of features written at a time."""


class _Features(NamedTuple):
    labels: NDArray[np.int32]  # (N,)
    polygons: NDArray[np.object_]  # (N,), in map coordinates
    areas: NDArray[np.float64]  # (N,)


def write_polygons(
    label_map: str | Path, output: str | Path, *, classes: Classes, simplify: float | None = None
) -> int:
    """Write each connected region of a label map as a feature, and return the number of features.

    A feature has the fields `class`, `class_id` and `area_m2`, the area on the ellipsoid of the map's CRS.
    Without a CRS, `area_map_units` replaces `area_m2`. Without any georeference, `area_pixels` does, and
    y = -row, as in QGIS. Control points, or RPCs at their mean height, place a map without a geotransform. A
    region is all pixels of one class that are connected by their edges. Pixels without data and those of the
    ignore index belong to none. The map is read in strips of rows.

    Args:
        label_map: Raster with class ids in its first band; a second band (confidence) is not read.
        output: A `.gpkg`, in the map's CRS; a `.parquet`, GeoParquet 1.1 in the same CRS, with a column
            `bbox`; or a `.geojson` after RFC 7946: longitude and latitude, cut at the antimeridian. Missing
            folders are created.
        classes: Classes of the map.
        simplify: Tolerance in map units. Corners are cut if their triangle has an area below its square.
            Neighbours keep a common border.

    Raises:
        DataError: the map cannot be read, or a label is not a class; the message names row and column.
        OutputError: as `check_polygon_output`, or the file cannot be written. An existing file is kept then.
    """
    output = Path(output)
    with gdal_options(label_map), open_raster(label_map) as source:
        check_polygon_output(source, output, simplify)
        if source.count > 2 or np.dtype(source.dtypes[0]).kind not in "ui":
            raise DataError(
                f"{label_map}: {source.count} bands of {source.dtypes[0]}; a label map has one of class ids "
                "in uint8 or uint16, and at most one more, of confidence"
            )
        geometry = map_geometry(source)
        tolerance = (simplify or 0.0) / sqrt(abs(geometry.transform.determinant))
        regions = trace_regions(_label_strips(source, classes), tolerance)
        write = {".gpkg": _write_geopackage, ".geojson": _write_geojson, ".parquet": _write_parquet}
        with written_aside(output, JOURNALS) as partial:
            try:
                return write[output.suffix.lower()](partial, output.stem, regions, geometry, classes)
            except RuntimeError as error:  # base of pyogrio's errors
                raise OutputError(f"{output}: cannot be written: {reason_of(error)}") from error


def check_polygon_output(source: DatasetReader, output: str | Path, simplify: float | None = None) -> None:
    """Check that `write_polygons` accepts these arguments for a map with the georeference of `source`.

    Raises:
        OutputError: the suffix is none of `SUFFIXES`, `simplify` is negative, or the output is GeoJSON and
            `source` has no CRS, or one of another body than the Earth.
        MissingExtraError: the output is GeoParquet and pyarrow is not installed.
        DataError: control points or RPCs do not place `source`.
    """
    suffix = Path(output).suffix.lower()
    if suffix not in SUFFIXES:
        raise OutputError(f"{output}: polygons are written as {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if simplify is not None and not (isfinite(simplify) and simplify >= 0):
        raise OutputError(f"{output}: simplify must be 0 or more, in the map's units, not {simplify}")
    if suffix == ".parquet":
        with optional_imports(str(output)):
            import pyarrow.parquet  # noqa: F401
    crs = map_geometry(source).crs
    if suffix != ".geojson":
        return
    if crs is None:
        raise OutputError(
            f"{output}: GeoJSON needs longitude and latitude, but {source.name} lacks a CRS or "
            "georeference; write a .gpkg"
        )
    try:
        Transformer.from_crs(crs, "EPSG:4326")
    except ProjError as error:
        raise OutputError(
            f"{output}: GeoJSON needs longitude and latitude on WGS 84, to which none leads from the CRS of "
            f"{source.name}, {crs.name}; write a .gpkg"
        ) from error


def _label_strips(source: DatasetReader, classes: Classes) -> Iterator[NDArray[np.int32]]:
    """Read the labels (h, W) from top to bottom, with `NO_LABEL` for pixels without data."""
    rows = max(1, STRIP_PIXELS // source.width)
    for top in range(0, source.height, rows):
        box = Box(top, 0, min(top + rows, source.height), source.width)
        try:
            band = source.read(1, window=box.window, masked=True)
        except RasterioError as error:
            rows_there = f"rows {top}-{box.bottom - 1}"
            raise DataError(f"{source.name}: {rows_there} cannot be read: {reason_of(error)}") from error
        labels = band.data.astype(np.int32)
        labels[np.ma.getmaskarray(band) | (labels == classes.ignore_index)] = NO_LABEL
        unknown = (labels >= len(classes)) | (labels < NO_LABEL)
        if unknown.any():
            row, column = np.argwhere(unknown)[0]
            raise DataError(
                f"{source.name}: label {labels[row, column]} at row {top + row}, column {column} is outside "
                f"the classes 0-{len(classes) - 1}"
            )
        yield labels


def _batches(
    regions: Iterator[tuple[int, shapely.Polygon]], geometry: MapGeometry, *, dense: bool
) -> Iterator[_Features]:
    """Yield regions in map coordinates, with their areas; one empty batch if there are no regions."""
    first = True
    while (found := list(islice(regions, BATCH))) or first:
        labels = np.array([label for label, _ in found], np.int32)
        polygons = np.array([polygon for _, polygon in found], object)
        densified = geometry.to_map_densified(polygons)
        written = densified if dense or geometry.placement else geometry.to_map(polygons)
        yield _Features(labels, written, geometry.areas(densified))
        first = False


def _write_geopackage(
    path: Path,
    layer: str,
    regions: Iterator[tuple[int, shapely.Polygon]],
    geometry: MapGeometry,
    classes: Classes,
) -> int:
    count = 0
    for features in _batches(regions, geometry, dense=False):
        _write_features(path, "GPKG", layer, features, geometry, classes, append=count > 0)
        count += len(features.labels)
    return count


def _write_parquet(
    path: Path,
    layer: str,
    regions: Iterator[tuple[int, shapely.Polygon]],
    geometry: MapGeometry,
    classes: Classes,
) -> int:
    from ccsegformer.raster._parquet import write_geoparquet

    return write_geoparquet(path, _batches(regions, geometry, dense=False), geometry, classes)


def _write_geojson(
    path: Path,
    layer: str,
    regions: Iterator[tuple[int, shapely.Polygon]],
    geometry: MapGeometry,
    classes: Classes,
) -> int:
    # GDAL projects, cuts and formats the features, but we write the file: GDAL ignores a full disk here.
    count = 0
    with path.open("w", encoding="utf-8") as file:
        file.write(f'{{"type": "FeatureCollection", "name": {json.dumps(layer)}, "features": [')
        # Straight lines of the map may become curves in longitude and latitude.
        dense = geometry.crs is not None and not geometry.crs.is_geographic
        precision = str(geometry.decimals)
        for features in _batches(regions, geometry, dense=dense):
            buffer = io.BytesIO()
            _write_features(
                buffer,
                "GeoJSON",
                layer,
                features,
                geometry,
                classes,
                RFC7946="YES",
                COORDINATE_PRECISION=precision,
            )
            for feature in json.loads(buffer.getvalue())["features"]:
                feature["geometry"] = _polygons_only(feature["geometry"])
                file.write((",\n" if count else "\n") + json.dumps(feature, ensure_ascii=False))
                count += 1
        file.write("\n]}\n")
    return count


def _polygons_only(shapes: dict[str, Any]) -> dict[str, Any]:
    """Drop the lines that GDAL leaves where it joins parts that it cut, as on maps from 0 to 360 degrees."""
    if shapes["type"] != "GeometryCollection":
        return shapes
    pieces = [shape(part) for part in shapes["geometries"] if part["type"].endswith("Polygon")]
    return mapping(shapely.union_all(pieces))


def _write_features(
    target: Path | io.BytesIO,
    driver: str,
    layer: str,
    features: _Features,
    geometry: MapGeometry,
    classes: Classes,
    *,
    append: bool = False,
    **options: str,
) -> None:
    names = np.array([classes.names[label] for label in features.labels], object)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")
        pyogrio.raw.write(
            target,
            geometry=shapely.to_wkb(features.polygons),
            field_data=[names, features.labels, features.areas],
            fields=["class", "class_id", geometry.area_name],
            layer=layer,
            driver=driver,
            geometry_type="Polygon",
            crs=geometry.crs and geometry.crs.to_wkt(),
            append=append,
            layer_options=options,
        )
