"""Label maps as polygons for QGIS and other GIS: GeoPackage or GeoJSON, in bounded memory."""

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
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from shapely.geometry import mapping, shape

from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError, OutputError
from ccsegformer.files import written_aside
from ccsegformer.raster._areas import Ground, find_ground
from ccsegformer.raster._regions import NOTHING, trace_regions
from ccsegformer.raster.read import Box, open_raster, reason_of

SUFFIXES = (".gpkg", ".geojson")
STRIP_PIXELS = 8_000_000  # traced at a time
BATCH = 2000  # features written at a time


class _Features(NamedTuple):
    labels: NDArray[np.int32]  # (N,)
    polygons: NDArray[np.object_]  # (N,), on the map
    areas: NDArray[np.float64]  # (N,)


def write_polygons(
    label_map: str | Path, output: str | Path, *, classes: Classes, simplify: float | None = None
) -> int:
    """Write the connected regions of a label map, one feature each; returns how many there are.

    A feature has `class`, `class_id` and `area_m2`, its area on the ellipsoid of the map's CRS. A map without
    CRS has `area_map_units` instead, and one without any georeference `area_pixels`, with y = -row as QGIS
    places such rasters. Pixels of one class that share an edge are one region; pixels without data and those
    of the ignore index belong to none. The map is read by strips of rows.

    Args:
        label_map: class ids in the first band of a raster; a second band (confidence) is not read.
        output: `.gpkg`, in the map's CRS; or `.geojson` as RFC 7946 has it: longitude and latitude, cut at
            the antimeridian. Missing folders are made.
        classes: names by id.
        simplify: in the map's units. Corners whose triangle is smaller than its square are cut off, and
            neighbours keep their border in common.

    Raises:
        DataError: the map cannot be read, or holds a label that is no class; the message says where.
        OutputError: as `check_polygon_output`, or the file cannot be written. An older file stays.
    """
    output = Path(output)
    with open_raster(Path(label_map)) as source:
        check_polygon_output(source, output, simplify)
        if source.count > 2 or np.dtype(source.dtypes[0]).kind not in "ui":
            raise DataError(
                f"{label_map}: {source.count} bands of {source.dtypes[0]}; a label map has one of class ids, "
                "uint8 or uint16, and perhaps one of confidence"
            )
        ground = find_ground(source)
        tolerance = (simplify or 0.0) / sqrt(abs(ground.transform.determinant))  # as area scales, so does it
        regions = trace_regions(_strips(source, classes), tolerance)
        write = _write_geopackage if output.suffix.lower() == ".gpkg" else _write_geojson
        with written_aside(output) as partial:
            try:
                return write(partial, output.stem, regions, ground, classes)
            except RuntimeError as error:  # of pyogrio
                raise OutputError(f"{output}: cannot be written: {reason_of(error)}") from error


def check_polygon_output(source: DatasetReader, output: str | Path, simplify: float | None = None) -> None:
    """Make sure, before a map like `source` is made, that `write_polygons` will not refuse the request.

    Raises:
        OutputError: another suffix than `SUFFIXES`, GeoJSON of a map without CRS, or a negative `simplify`.
    """
    suffix = Path(output).suffix.lower()
    if suffix not in SUFFIXES:
        raise OutputError(f"{output}: polygons are written as {' or '.join(SUFFIXES)}")
    if simplify is not None and not (isfinite(simplify) and simplify >= 0):
        raise OutputError(f"{output}: simplify must be 0 or more, in the map's units, not {simplify}")
    if suffix == ".geojson" and find_ground(source).crs is None:
        raise OutputError(
            f"{output}: GeoJSON needs longitude and latitude, but {source.name} does not say where on Earth "
            "it lies; write a .gpkg"
        )


def _strips(source: DatasetReader, classes: Classes) -> Iterator[NDArray[np.int32]]:
    """The labels (h, W), from the top down; `NOTHING` where there are no data."""
    rows = max(1, STRIP_PIXELS // source.width)
    for top in range(0, source.height, rows):
        box = Box(top, 0, min(top + rows, source.height), source.width)
        try:
            band = source.read(1, window=box.window, masked=True)
        except RasterioError as error:
            rows_there = f"rows {top}-{box.bottom - 1}"
            raise DataError(f"{source.name}: {rows_there} cannot be read: {reason_of(error)}") from error
        labels = band.data.astype(np.int32)
        labels[np.ma.getmaskarray(band) | (labels == classes.ignore_index)] = NOTHING
        unknown = (labels >= len(classes)) | (labels < NOTHING)
        if unknown.any():
            row, column = np.argwhere(unknown)[0]
            raise DataError(
                f"{source.name}: label {labels[row, column]} at row {top + row}, column {column} is outside "
                f"the classes 0-{len(classes) - 1}"
            )
        yield labels


def _batches(
    regions: Iterator[tuple[int, shapely.Polygon]], ground: Ground, *, dense: bool
) -> Iterator[_Features]:
    """Regions on the map with their areas; one empty batch when there are none."""
    first = True
    while (found := list(islice(regions, BATCH))) or first:
        labels = np.array([label for label, _ in found], np.int32)
        polygons = np.array([polygon for _, polygon in found], object)
        lines = ground.place_densely(polygons)
        yield _Features(labels, lines if dense else ground.place(polygons), ground.areas(lines))
        first = False


def _write_geopackage(
    path: Path,
    layer: str,
    regions: Iterator[tuple[int, shapely.Polygon]],
    ground: Ground,
    classes: Classes,
) -> int:
    count = 0
    for features in _batches(regions, ground, dense=False):
        _write(path, "GPKG", layer, features, ground, classes, append=count > 0)
        count += len(features.labels)
    return count


def _write_geojson(
    path: Path,
    layer: str,
    regions: Iterator[tuple[int, shapely.Polygon]],
    ground: Ground,
    classes: Classes,
) -> int:
    # GDAL projects, cuts and writes each feature; the file is ours, since GDAL would not notice a full disk.
    count = 0
    with path.open("w", encoding="utf-8") as file:
        file.write(f'{{"type": "FeatureCollection", "name": {json.dumps(layer)}, "features": [')
        # What is straight on the map is to stay in place, and needs no help if the map is one of degrees.
        dense = ground.crs is not None and not ground.crs.is_geographic
        for features in _batches(regions, ground, dense=dense):
            buffer = io.BytesIO()
            _write(buffer, "GeoJSON", layer, features, ground, classes, RFC7946="YES")
            for feature in json.loads(buffer.getvalue())["features"]:
                feature["geometry"] = _polygons_alone(feature["geometry"])
                file.write((",\n" if count else "\n") + json.dumps(feature, ensure_ascii=False))
                count += 1
        file.write("\n]}\n")
    return count


def _polygons_alone(geometry: dict[str, Any]) -> dict[str, Any]:
    """Without the lines that GDAL leaves where it joins what it has cut, as of maps from 0 to 360 degrees."""
    if geometry["type"] != "GeometryCollection":
        return geometry
    pieces = [shape(part) for part in geometry["geometries"] if part["type"].endswith("Polygon")]
    return mapping(shapely.union_all(pieces))


def _write(
    target: Path | io.BytesIO,
    driver: str,
    layer: str,
    features: _Features,
    ground: Ground,
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
            fields=["class", "class_id", ground.area_name],
            layer=layer,
            driver=driver,
            geometry_type="Polygon",
            crs=ground.crs and ground.crs.to_wkt(),
            append=append,
            layer_options=options,
        )
