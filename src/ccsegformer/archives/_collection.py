"""The STAC collection of an archive: its extent, its classes, and links to its items."""

import json
from typing import Any

import numpy as np
import pystac

from ccsegformer.archives.item import COLLECTION_ID, DATETIME_FROM, EXTENSIONS, MEDIA_TYPES, UNKNOWN_DATE

COLLECTION, ITEMS = "collection.json", "items.parquet"
SUMMARISED = ("proj:code", "ccsegformer:model")
"""Properties of items whose values the collection lists."""


class Overview:
    """What the collection says of all items, gathered one by one."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.boxes: list[list[float]] = []
        self.dates: set[str] = set()
        self.classes: set[str] = set()
        self.summaries: dict[str, set[str]] = {key: set() for key in SUMMARISED}

    def add(self, item: dict[str, Any]) -> None:
        """Take an item's name, place, date and classes."""
        self.names.append(item["id"])
        properties = item["properties"]
        if bbox := item.get("bbox"):
            self.boxes.append(bbox)
        if properties.get(DATETIME_FROM) != UNKNOWN_DATE:
            self.dates.add(properties["datetime"])
        self.classes |= {json.dumps(one, sort_keys=True) for one in _classes_of(item)}
        for key, values in self.summaries.items():
            values |= {properties[key]} if properties.get(key) else set()


def collection_of(overview: Overview, has_table: bool) -> dict[str, Any]:
    """Return the collection of all items that the overview has seen."""
    classes = [json.loads(one) for one in overview.classes]
    summaries = {key: sorted(values) for key, values in overview.summaries.items() if values}
    if classes:
        order = sorted(classes, key=lambda one: (one["value"], one["name"], json.dumps(one)))
        summaries["classification:classes"] = order
    dates = sorted(overview.dates)
    links = [_link("root", f"./{COLLECTION}", pystac.MediaType.JSON)]
    for name in overview.names:
        links.append(_link("item", f"./scenes/{name}/{name}.json", pystac.MediaType.GEOJSON))
    document: dict[str, Any] = {
        "type": "Collection",
        "stac_version": "1.1.0",
        "stac_extensions": [uri for uri in EXTENSIONS if "/classification/" in uri and classes],
        "id": COLLECTION_ID,
        "title": "Label maps",
        "description": "Label maps of scenes, written by ccsegformer",
        "license": "other",
        "extent": {
            "spatial": {"bbox": [_extent(overview.boxes)]},
            "temporal": {"interval": [[dates[0], dates[-1]] if dates else [None, None]]},
        },
        "summaries": summaries,
        "links": links,
    }
    if has_table:
        document["assets"] = {"items": _table_asset()}
    return document


def _table_asset() -> dict[str, Any]:
    return {
        "href": f"./{ITEMS}",
        "title": "All items as stac-geoparquet",
        "type": MEDIA_TYPES[".parquet"],
        "roles": ["collection-mirror"],
    }


def _link(relation: str, href: str, media_type: str) -> dict[str, str]:
    return {"rel": relation, "href": href, "type": str(media_type)}


def _classes_of(item: dict[str, Any]) -> list[dict[str, Any]]:
    asset = item["assets"].get("map", {})
    return next(
        (
            part["classification:classes"]
            for part in (asset, *asset.get("bands", ()))
            if "classification:classes" in part
        ),
        [],
    )


def _extent(boxes: list[list[float]]) -> list[float]:
    """Return the bounds of all boxes, as narrow around the antimeridian as they are; the Earth if none."""
    if not boxes:
        return [-180.0, -90.0, 180.0, 90.0]
    west, south, east, north = np.array(boxes).T
    if (west > east).any():
        west = west % 360  # from 0 to 360 degrees; east of the antimeridian lies beyond 180
        east = west + (np.array(boxes)[:, 2] - west) % 360
    left, right = float(west.min()), float(east.max())
    if right - left >= 360:
        left, right = -180.0, 180.0
    left, right = left - 360 * (left > 180), right - 360 * (right > 180)
    return [round(side, 9) for side in (left, float(south.min()), right, float(north.max()))]
