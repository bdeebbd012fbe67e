"""STAC documents, and what is listed of them."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac
import pytest
import stac_geoparquet.arrow

from ccsegformer.archives.listing import list_scenes
from ccsegformer.archives.reference import SceneReference
from ccsegformer.errors import DataError

TIFF = "image/tiff; application=geotiff"


def item(name: str, assets: dict[str, dict[str, Any]] | None = None, **properties: Any) -> pystac.Item:
    made = pystac.Item(
        name,
        {"type": "Point", "coordinates": [14, 45]},
        [14, 45, 14, 45],
        datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC),
        properties,
    )
    for key, about in (assets or {"image": {"href": f"{name}.tif"}}).items():
        made.add_asset(key, pystac.Asset.from_dict({"type": TIFF} | about))
    return made


def save(path: Path, document: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = document if isinstance(document, dict) else document.to_dict(transform_hrefs=False)
    path.write_text(json.dumps(content))
    return str(path)


def listed(*inputs: Any, **options: Any) -> list[SceneReference]:
    return list(list_scenes([str(given) for given in inputs], **options))


def names_of(*inputs: Any, **options: Any) -> list[str]:
    return [scene.name for scene in listed(*inputs, **options)]


def hrefs(scenes: list[SceneReference]) -> list[list[str]]:
    return [[asset.href for asset in scene.assets] for scene in scenes]


def refused(*inputs: Any, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        listed(*inputs, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def write_parquet(path: Path, items: list[pystac.Item], **options: Any) -> Path:
    dicts = [made.to_dict(transform_hrefs=False) for made in items]
    stac_geoparquet.arrow.to_parquet(stac_geoparquet.arrow.parse_stac_items_to_arrow(dicts), path, **options)
    return path
