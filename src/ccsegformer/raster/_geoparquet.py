"""Read GeoParquet files, which GDAL in the packages from PyPI cannot.

A file is read whole and kept, so that each window only looks up what it needs.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ccsegformer.errors import DataError

KEPT_FILES = 4
"""Number of files that a process keeps in memory."""
LONGITUDE_LATITUDE = "OGC:CRS84"
"""CRS of a file that names none, by the specification of GeoParquet."""


class GeoTable(NamedTuple):
    """Content of a GeoParquet file of N features."""

    geometries: NDArray[np.object_]
    """WKB (N,); None for a feature without geometry."""
    bounds: NDArray[np.float64]
    """(N, 4): left, bottom, right, top; NaN for a feature without geometry."""
    columns: Any
    """The other columns, a `pyarrow.Table`."""
    crs: str | None
    """CRS as WKT."""

    def info(self) -> dict[str, Any]:
        """Describe the features as `pyogrio.read_info` does."""
        low, high = self.bounds[:, :2], self.bounds[:, 2:]
        found = np.isfinite(self.bounds).all(axis=1)
        total = (*low[found].min(axis=0), *high[found].max(axis=0)) if found.any() else None
        return {
            "features": len(self.geometries),
            "crs": self.crs,
            "fields": self.columns.column_names,
            "geometry_type": "Unknown",
            "total_bounds": total,
        }

    def read(
        self, column: str | None, bbox: tuple[float, float, float, float] | None
    ) -> tuple[list[int], NDArray[np.object_], list[Any]]:
        """Return row numbers, geometries as WKB, and values of a column, of features that may touch a box."""
        rows = np.arange(len(self.geometries))
        if bbox is not None:
            left, bottom, right, top = self.bounds.T
            rows = rows[(left <= bbox[2]) & (bbox[0] <= right) & (bottom <= bbox[3]) & (bbox[1] <= top)]
        values = self.columns[column].take(rows).to_pylist() if column else [1] * len(rows)
        return rows.tolist(), self.geometries[rows], values


def read_geoparquet(path: Path) -> GeoTable:
    """Read a GeoParquet file whose geometries are WKB.

    Raises:
        DataError: the file has no GeoParquet metadata, or another encoding.
    """
    return _read_table(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=KEPT_FILES)
def _read_table(path: Path, changed: int) -> GeoTable:
    import pyarrow.parquet
    import shapely

    table = pyarrow.parquet.read_table(path, partitioning=None)
    described = (table.schema.metadata or {}).get(b"geo")
    if described is None:
        raise DataError(f"{path}: has no GeoParquet metadata, so its geometries are unknown")
    described = json.loads(described)
    primary = described["primary_column"]
    column = described["columns"][primary]
    if column["encoding"] != "WKB":
        raise DataError(f"{path}: geometries are encoded as {column['encoding']}; save them as WKB")
    geometries = table[primary].to_numpy()
    bounds = shapely.bounds(shapely.from_wkb(geometries))
    return GeoTable(geometries, bounds, table.drop_columns(list(described["columns"])), _crs(column))


def _crs(column: dict[str, Any]) -> str | None:
    from pyproj import CRS

    crs = column.get("crs", LONGITUDE_LATITUDE)
    return None if crs is None else str(CRS.from_user_input(crs).to_wkt())
