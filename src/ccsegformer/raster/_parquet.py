"""Write polygons as GeoParquet 1.1, with the bounds of each in a column, by which readers skip row groups."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from ccsegformer.data.labels import Classes
from ccsegformer.raster._areas import MapGeometry

BOUNDS = ("xmin", "ymin", "xmax", "ymax")
ROW_GROUP_BYTES = 32 * 2**20
"""Size, before compression, at which a row group is written."""

Features = tuple[NDArray[np.int32], NDArray[np.object_], NDArray[np.float64]]


def write_geoparquet(path: Path, batches: Iterable[Features], geometry: MapGeometry, classes: Classes) -> int:
    """Write polygons in batches of labels (N,), polygons (N,) and areas (N,); return their number."""
    schema = _schema(geometry)
    bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in _row_groups(batches, classes, schema):
            writer.write_table(table, row_group_size=max(1, len(table)))
            bounds = _with_bounds(bounds, table)
            count += len(table)
        writer.add_key_value_metadata({"geo": json.dumps(_metadata(geometry, bounds))})
    return count


def _schema(geometry: MapGeometry) -> pa.Schema:
    box = pa.struct([pa.field(name, pa.float64(), nullable=False) for name in BOUNDS])
    types = [pa.string(), pa.int32(), pa.float64(), pa.binary(), box]
    names = ["class", "class_id", geometry.area_name, "geometry", "bbox"]
    return pa.schema([pa.field(*field, nullable=False) for field in zip(names, types, strict=True)])


def _row_groups(batches: Iterable[Features], classes: Classes, schema: pa.Schema) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for labels, polygons, areas in batches:
        waiting.append(_table(labels, polygons, areas, classes, schema))
        if sum(table.nbytes for table in waiting) >= ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _table(
    labels: NDArray[np.int32],
    polygons: NDArray[np.object_],
    areas: NDArray[np.float64],
    classes: Classes,
    schema: pa.Schema,
) -> pa.Table:
    names = [classes.names[label] for label in labels]
    sides = [pa.array(side) for side in shapely.bounds(polygons).reshape(-1, 4).T]
    boxes = pa.StructArray.from_arrays(sides, fields=list(schema.field("bbox").type))
    shapes = pa.array(shapely.to_wkb(polygons).tolist(), pa.binary())
    return pa.Table.from_arrays([pa.array(names, pa.string()), labels, areas, shapes, boxes], schema=schema)


def _with_bounds(bounds: NDArray[np.float64], table: pa.Table) -> NDArray[np.float64]:
    if not len(table):
        return bounds
    sides = table["bbox"].combine_chunks().flatten()
    west, south, east, north = (side.to_numpy() for side in sides)
    low = np.minimum(bounds[:2], [west.min(), south.min()])
    return np.concatenate([low, np.maximum(bounds[2:], [east.max(), north.max()])])


def _metadata(geometry: MapGeometry, bounds: NDArray[np.float64]) -> dict[str, Any]:
    """Return the metadata that GeoParquet asks for; a CRS of null is an unknown one."""
    column = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": geometry.crs and geometry.crs.to_json_dict(),
        "orientation": "counterclockwise",
        "edges": "planar",
        "covering": {"bbox": {name: ["bbox", name] for name in BOUNDS}},
    }
    if np.isfinite(bounds).all():
        column["bbox"] = bounds.tolist()
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
