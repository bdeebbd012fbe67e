"""Describe a finished map as a STAC item, the same bytes for the same map."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
from rasterio.io import DatasetReader

from ccsegformer import __version__
from ccsegformer.archives._footprint import bbox_of, geometry_of
from ccsegformer.archives.reference import SceneReference
from ccsegformer.data.labels import Classes
from ccsegformer.raster.georeference import is_georeferenced
from ccsegformer.raster.read import MASK_DTYPES, open_raster
from ccsegformer.raster.source_files import is_over_network

COLLECTION_ID = "maps"
EXTENSIONS = tuple(
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("classification/v2.0.0", "file/v2.1.0", "processing/v1.1.0", "projection/v2.0.0")
)
MEDIA_TYPES = {
    ".tif": pystac.MediaType.COG.value,
    ".parquet": "application/vnd.apache.parquet",
    ".xml": pystac.MediaType.XML.value,
}
TITLES = {"map": "Label map", "polygons": "Regions of the map", "names": "Class names as GDAL reads them"}
FINGERPRINT = "ccsegformer:fingerprint"
DATETIME_FROM = "ccsegformer:datetime_from"
"""Name of the property that tells what an item's date is: only that of an item or of `ACQUISITION` is one of
acquisition."""
UNKNOWN_DATE = "unknown"
"""Value of that property for an item that has 1970 in place of a date."""
ACQUISITION = "ACQUISITIONDATETIME"
TIFF_DATE = "TIFFTAG_DATETIME"


def map_item(
    reference: SceneReference,
    files: Mapping[str, Path],
    classes: Classes,
    *,
    fingerprint: str,
    properties: Mapping[str, Any],
    model: str | None = None,
) -> pystac.Item:
    """Return the STAC item of a finished map; its assets lie beside it.

    The date is that of the scene's item, else of the scene's tags, else the time of its last modification.
    `ccsegformer:datetime_from` says which.

    Args:
        reference: The scene that was mapped.
        files: Local paths: `map`, and if there are any, `polygons` and `names` (the map's `.aux.xml`).
        classes: Classes of the map.
        fingerprint: What identifies the map's model, arguments and source; see `read_fingerprint`.
        properties: Further properties. `datetime` is the time at which the source was last modified (RFC
            3339); by default, that of a local file.
        model: Address of the STAC item of the model.

    Raises:
        DataError: the map, or a scene without a date in its item, cannot be read.
    """
    further = dict(properties)
    date, origin = _date(reference, further.pop("datetime", None))
    further |= {FINGERPRINT: fingerprint, DATETIME_FROM: origin} | _processing(reference)
    with open_raster(files["map"]) as source:
        geometry = geometry_of(source)
        item = pystac.Item(
            id=reference.name,
            geometry=geometry,
            bbox=bbox_of(geometry),
            datetime=date,
            properties=further | _projection(source),
            stac_extensions=list(EXTENSIONS),
            collection=COLLECTION_ID,
        )
        bands = _bands(source, classes)
    for key, path in files.items():
        item.add_asset(key, _asset(key, path, bands if key == "map" else {}))
    item.add_links(list(_links(reference, model)))
    return item


def encode_item(item: pystac.Item) -> bytes:
    """Return an item as JSON, with sorted keys."""
    document = item.to_dict(include_self_link=False, transform_hrefs=False)
    return (
        json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    )


def read_fingerprint(content: bytes) -> str | None:
    """Return the fingerprint in the JSON of an item; None if it is damaged or of another program."""
    document = parse_object(content)
    found = (
        properties.get(FINGERPRINT) if isinstance(properties := document.get("properties"), dict) else None
    )
    return found if isinstance(found, str) else None


def parse_object(content: bytes) -> dict[str, Any]:
    """Parse a JSON object; return an empty one for whatever is none."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _date(reference: SceneReference, modified: str | None) -> tuple[datetime, str]:
    """Return the best date that is known, and where it is from."""
    if date := _parse_date(reference.datetime):
        return date, "item"
    for origin, text in _tagged_dates(reference):
        if date := _parse_date(text):
            return date, origin
    if date := _parse_date(modified) or _modified(reference):
        return date, "modification"
    return datetime(1970, 1, 1, tzinfo=UTC), UNKNOWN_DATE


def _parse_date(text: str | None) -> datetime | None:
    """Parse a date of RFC 3339 or of TIFF, in UTC unless it says otherwise."""
    if not text:
        return None
    text = re.sub(r"^(\d{4}):(\d\d):(\d\d)", r"\1-\2-\3", text.strip().upper())
    try:
        date = datetime.fromisoformat(text)
        return date.replace(tzinfo=date.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _tagged_dates(reference: SceneReference) -> Iterator[tuple[str, str | None]]:
    for asset in reference.assets[:1]:
        with open_raster(asset.href, MASK_DTYPES) as source:
            yield ACQUISITION, source.tags(ns="IMAGERY").get(ACQUISITION) or source.tags().get(ACQUISITION)
            yield TIFF_DATE, source.tags().get(TIFF_DATE)


def _modified(reference: SceneReference) -> datetime | None:
    for asset in reference.assets[:1]:
        if not is_over_network(asset.href) and Path(asset.href).is_file():
            return datetime.fromtimestamp(int(Path(asset.href).stat().st_mtime), UTC)
    return None


def _processing(reference: SceneReference) -> dict[str, Any]:
    return {
        "processing:level": "L4",
        "processing:lineage": f"Semantic segmentation of {reference.name}",
        "processing:software": {"ccsegformer": __version__},
    }


def _projection(source: DatasetReader) -> dict[str, Any]:
    fields: dict[str, Any] = {"proj:shape": list(source.shape)}
    if not is_georeferenced(source):
        return fields
    fields |= {"proj:transform": list(source.transform[:6]), "proj:bbox": list(_bounds(source))}
    if not source.crs:
        return fields
    from pyproj import CRS

    crs = CRS.from_wkt(source.crs.to_wkt())
    authority = crs.to_authority(min_confidence=90)
    fields["proj:code"] = ":".join(authority) if authority else None
    return fields if authority else fields | {"proj:wkt2": crs.to_wkt()}


def _bounds(source: DatasetReader) -> list[float]:
    """Return left, bottom, right and top, also of a map whose rows do not run from west to east."""
    a, b, c, d, e, f = source.transform[:6]
    columns, rows = np.array([0, source.width] * 2), np.repeat([0, source.height], 2)
    x, y = a * columns + b * rows + c, d * columns + e * rows + f
    return [float(side) for side in (x.min(), y.min(), x.max(), y.max())]


def _bands(source: DatasetReader, classes: Classes) -> dict[str, Any]:
    """Return what the map's asset says of its bands; the classes are the asset's own if it has one band."""
    kind: dict[str, Any] = {"data_type": source.dtypes[0]}
    if source.nodata is not None:
        kind["nodata"] = int(source.nodata)
    named = {"classification:classes": _class_objects(classes, kind.get("nodata"))}
    if source.count == 1:
        return kind | named | {"bands": [{"name": "class"}]}
    largest = np.iinfo(source.dtypes[0]).max - 1
    confidence = {"name": "confidence", "description": f"Probability of the class, from 0 to {largest} for 1"}
    return kind | {"bands": [{"name": "class"} | named, confidence]}


def _class_objects(classes: Classes, nodata: int | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for label, (name, color) in enumerate(zip(classes.names, classes.palette, strict=True)):
        plain = re.sub("[^0-9A-Za-z_-]+", "_", name).strip("_") or "class"
        if plain in {other["name"] for other in found}:
            plain = f"{plain}_{label}"
        found.append(
            {"value": label, "name": plain, "title": name, "color_hint": "{:02X}{:02X}{:02X}".format(*color)}
        )
    if nodata is not None and nodata >= len(classes):
        found.append({"value": nodata, "name": "nodata", "title": "No data", "nodata": True})
    return found


def _asset(key: str, path: Path, fields: dict[str, Any]) -> pystac.Asset:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return pystac.Asset(
        href=f"./{path.name}",
        title=TITLES.get(key),
        media_type=MEDIA_TYPES.get(path.suffix.lower()),
        roles=["metadata" if key == "names" else "data"],
        # A multihash: 0x12 is SHA2-256, 0x20 its length in bytes.
        extra_fields=fields | {"file:checksum": f"1220{digest}", "file:size": path.stat().st_size},
    )


def _links(reference: SceneReference, model: str | None) -> Iterator[pystac.Link]:
    for relation in ("collection", "parent", "root"):
        yield pystac.Link(relation, "../../collection.json", media_type=pystac.MediaType.JSON)
    if reference.item:
        yield pystac.Link("derived_from", _unsigned(reference.item), media_type=pystac.MediaType.GEOJSON)
    else:
        yield from (pystac.Link("derived_from", _unsigned(asset.href)) for asset in reference.assets)
    if model:
        yield pystac.Link("derived_from", model, media_type=pystac.MediaType.GEOJSON, title="Model")


def _unsigned(href: str) -> str:
    """Return an address without its query if that holds a signature, which is secret and soon expires."""
    address, _, query = href.partition("?")
    return address if "://" in href and re.search(r"(^|[&-])sig(nature)?=", query, re.IGNORECASE) else href
