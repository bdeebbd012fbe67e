"""Choose the image among the assets of a STAC item, and find its scale, offset and nodata value."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from ccsegformer.archives._stac_inputs import OFFSET_APPLIED, FoundItem, absolute_href
from ccsegformer.archives.reference import SceneAsset, SceneReference
from ccsegformer.errors import DataError
from ccsegformer.raster.read import RASTER_SUFFIXES

NO_IMAGES = {"thumbnail", "overview", "metadata", "preview"}
"""Roles, or names, of assets that are not the scene."""


def reference_of(found: FoundItem, names: Sequence[str] = ()) -> SceneReference:
    """Describe an item's scene; with a `problem` if it cannot be mapped, such as for want of an asset."""
    if found.problem is not None:
        place = urlsplit(found.base)
        return SceneReference(safe_name(place.netloc + place.path), (), found.address, problem=found.problem)
    name, properties = safe_name(str(found.content["id"])), found.content.get("properties") or {}
    moment = properties.get("datetime") or properties.get("start_datetime")
    try:
        chosen = choose_assets(found.content, names)
        assets = tuple(_scene_asset(found, name) for name in chosen)
    except DataError as error:
        where = found.address or found.base
        problem = f"{where}: item {found.content['id']}: {error}"
        return SceneReference(name, (), found.address, moment, problem)
    return SceneReference(name, assets, found.address, moment)


def choose_assets(item: dict[str, Any], names: Sequence[str] = ()) -> list[str]:
    """Return the names of the assets that are the image.

    Without `names`, it is the only raster that is no thumbnail, overview or metadata, or the only one of
    several with the role `data`.

    Raises:
        DataError: the item has not all of `names`, or more or fewer than one asset that may be the image.
    """
    assets = item["assets"]
    if missing := [name for name in names if name not in assets]:
        raise DataError(f"has no asset {', '.join(missing)}; it has {_assets_in_words(assets)}")
    if names:
        return list(names)
    rasters = {name: asset for name, asset in assets.items() if _may_be_image(name, asset)}
    data = [name for name, asset in rasters.items() if "data" in (asset.get("roles") or [])]
    for found in (list(rasters), data):
        if len(found) == 1:
            return found
    what = "several assets may be" if rasters else "no asset is known to be"
    raise DataError(f"{what} the image; choose with --asset among {_assets_in_words(rasters or assets)}")


def safe_name(text: str) -> str:
    """Return a name for files and keys: whatever may not be in one becomes `_`."""
    return re.sub(r"[^\w .+=@,()-]", "_", text).strip(" .")[-200:].strip(" .") or "_"


def _may_be_image(name: str, asset: dict[str, Any]) -> bool:
    if NO_IMAGES & {name, *(asset.get("roles") or [])}:
        return False
    kind = asset.get("type") or ""
    suffix = PurePosixPath(urlsplit(asset.get("href") or "").path).suffix.lower()
    return kind.startswith("image/") or (not kind and suffix in RASTER_SUFFIXES)


def _assets_in_words(assets: dict[str, Any]) -> str:
    about = {name: asset.get("title") or asset.get("type") for name, asset in assets.items()}
    return ", ".join(name + f" ({text})" * bool(text) for name, text in about.items()) or "none"


def _scene_asset(found: FoundItem, name: str) -> SceneAsset:
    """Describe an asset.

    Scale, offset and nodata are those of `raster:bands` (STAC 1.0), or of `bands` or the asset itself (STAC
    1.1). Where the item says that Sentinel-2's offset has been applied to the pixels, as Earth Search does in
    `earthsearch:boa_offset_applied` while it still lists -0.1 among the bands, the offset is 0.

    Raises:
        DataError: no address, a value that is no number, or bands of one asset that differ.
    """
    asset = found.content["assets"][name]
    if not asset.get("href"):
        raise DataError(f"asset {name} has no href")
    scale, offset, nodata = (_value(name, asset, key) for key in ("scale", "offset", "nodata"))
    properties = found.content.get("properties") or {}
    if offset is not None and any(properties.get(key) for key in OFFSET_APPLIED):
        offset = 0.0
    return SceneAsset(absolute_href(asset["href"], found.base), scale, offset, nodata)


def _value(name: str, asset: dict[str, Any], key: str) -> float | None:
    """Return the scale, offset or nodata value of an asset's bands; None if the item does not give it."""
    own = _first(asset, f"raster:{key}", key if key == "nodata" else "")
    bands = asset.get("raster:bands") or asset.get("bands") or [{}]
    given = [_first(band, f"raster:{key}", key) for band in bands]
    values = [own if value is None else value for value in given]
    if len({str(value) for value in values}) > 1:
        listed = ", ".join(map(str, values))
        raise DataError(f"the bands of asset {name} differ in their {key}: {listed}; choose others")
    if values[0] is None:
        return None
    try:
        return float(values[0])
    except (TypeError, ValueError) as error:
        raise DataError(f"asset {name} has a {key} of {values[0]!r}, not a number") from error


def _first(fields: dict[str, Any], *keys: str) -> Any:
    return next((fields[key] for key in keys if fields.get(key) is not None), None)
