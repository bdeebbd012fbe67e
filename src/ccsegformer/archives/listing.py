"""List the scenes of an archive: files, folders, globs, text lists, STAC items and stac-geoparquet."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from ccsegformer.archives._stac_assets import reference_of, safe_name
from ccsegformer.archives._stac_inputs import (
    FoundItem,
    absolute_href,
    items_in_json,
    items_in_parquet,
    read_address,
)
from ccsegformer.archives.reference import SceneAsset, SceneReference
from ccsegformer.data.images import image_suffixes
from ccsegformer.errors import DataError
from ccsegformer.raster.folders import images_among, images_in
from ccsegformer.raster.read import RASTER_SUFFIXES
from ccsegformer.raster.source_files import is_remote

JSON_SUFFIXES = (".json", ".geojson")
PARQUET_SUFFIXES = (".parquet", ".geoparquet")
LIST_SUFFIXES = (".txt", ".lst")
STORES = ("http://", "https://", "s3://", "gs://", "az://")
"""Schemes of the addresses at which lists and STAC files are read."""


class _Source(NamedTuple):
    """A raster, or a file of STAC items."""

    address: str
    listed: bool = False
    """Whether it is a line of a text list, so that what is wrong with it concerns only this line."""


def list_scenes(inputs: Sequence[str], *, assets: Sequence[str] = ()) -> Iterator[SceneReference]:
    """Yield the scenes of an archive, in the order of the inputs; no two have the same name.

    Items are read as they are needed, so that an archive of any size takes little memory. A scene is named
    after its file or item. Rasters of the same name get those of the folders around them as prefixes, as
    many as tell them apart. A scene that is listed twice is yielded once.

    Args:
        inputs: Rasters, or whatever GDAL opens; folders, which stand for the images directly in them without
            the masks of scenes; globs, in which `**` matches any folders; text lists (.txt, .lst) with any of
            these in each line, relative to the list, and `#` before comments; STAC Items, ItemCollections
            such as saved searches, Catalogs, Collections and API addresses; stac-geoparquet (.parquet). Lists
            and STAC may be at http(s)://, s3://, gs:// and az://, as may rasters.
        assets: Names of the items' assets to use; several, of one band each, are stacked in this order. By
            default the only raster asset, or the only one with the role `data`. Scale, offset and nodata of
            the item go with them, see `SceneAsset`.

    Raises:
        DataError: At once, for an input that does not exist or a list that cannot be read; while scenes are
            yielded, for a file of another kind, no scenes, two scenes of one name, or a first item for which
            `assets` must be given. A later item that lacks the assets or cannot be read has a `problem`.
    """
    sources = list(dict.fromkeys(source for given in inputs for source in _expanded(given)))
    rasters = dict.fromkeys(
        source.address for source in sources if _kind_of_input(source.address) == "raster"
    )
    if assets and len(rasters) == len({source.address for source in sources}):
        raise DataError(f"{', '.join(inputs)}: holds no STAC items, so it has no asset {', '.join(assets)}")
    names = _distinct_names(list(rasters))

    def listed() -> Iterator[SceneReference]:
        return _references(sources, names, assets)

    return _without_repetitions(listed, inputs)


def _references(
    sources: Sequence[_Source], names: dict[str, str], assets: Sequence[str]
) -> Iterator[SceneReference]:
    first = True
    for address, listed in sources:
        if _kind_of_input(address) == "raster":
            yield SceneReference(names.get(address) or _stem(address), (SceneAsset(address),))
            continue
        for found in _items(address, listed):
            scene = reference_of(found, assets)
            if first and not assets and scene.problem is not None and found.problem is None:
                raise DataError(scene.problem)
            first = first and found.problem is not None
            yield scene


def _items(address: str, listed: bool) -> Iterator[FoundItem]:
    try:
        yield from (items_in_parquet if _kind_of_input(address) == "parquet" else items_in_json)(address)
    except DataError as error:
        if not listed:
            raise
        yield FoundItem({}, address, address, str(error))


def _without_repetitions(
    listed: Callable[[], Iterator[SceneReference]], inputs: Sequence[str]
) -> Iterator[SceneReference]:
    """Yield scenes once each; refuse two of one name. Only hashes are kept of what has been yielded."""
    seen: dict[int, int] = {}
    for scene in listed():
        key, content = hash(scene.name), hash(repr(scene))
        if key not in seen:
            seen[key] = content
            yield scene
        elif seen[key] != content:
            other = next(earlier for earlier in listed() if hash(earlier.name) == key)
            places = " and ".join(_place(one) for one in (other, scene))
            raise DataError(f"{places}: both scenes would be named {scene.name}; rename one or list it apart")
    if not seen:
        raise DataError(f"{', '.join(inputs)}: no scenes")


def _place(scene: SceneReference) -> str:
    return scene.item or next((asset.href for asset in scene.assets), scene.problem or scene.name)


def _expanded(given: str, listed: bool = False) -> Iterator[_Source]:
    """Yield what an input stands for; that of a list may be missing, which is said when its turn comes."""
    if given.startswith("file://"):
        given = absolute_href(given, "")
    path = Path(given).absolute()
    if is_remote(given):
        found = [given]
    elif path.is_dir():
        found = [str(image) for image in images_in(path)]
    elif not path.exists() and set("*?[") & set(given):
        found = _globbed(path)
    elif path.exists() or listed:
        found = [str(path)]
    else:
        raise DataError(f"{given}: no such file or folder")
    for address in found:
        if _kind_of_input(address) != "list":
            yield _Source(address, listed)
        elif listed:
            raise DataError(f"{address}: a list within a list; name it as an input of its own")
        else:
            yield from _lines_of_list(address)


def _lines_of_list(address: str) -> Iterator[_Source]:
    try:
        text = read_address(address).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{address}: not a text list: it is not in UTF-8") from error
    for line in map(str.strip, text.split("\n")):
        if line and not line.startswith("#"):
            yield from _expanded(absolute_href(line, address), listed=True)


def _globbed(pattern: Path) -> list[str]:
    """Return the images, lists and STAC files that a pattern matches, by name."""
    matches = list(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    tables = (*JSON_SUFFIXES, *PARQUET_SUFFIXES, *LIST_SUFFIXES)
    found = {match for match in matches if match.suffix.lower() in tables and match.is_file()}
    found |= set(images_among(match for match in matches if match not in found))
    if not found:
        raise DataError(f"{pattern}: matches no images, lists or STAC files")
    return sorted(map(str, found))


def _kind_of_input(address: str) -> str:
    """Return raster, json, parquet or list. Over HTTP, what has no suffix of these is from a STAC API."""
    in_store = address.startswith(STORES)
    suffix = PurePosixPath(urlsplit(address).path if in_store else address).suffix.lower()
    kinds = {"json": JSON_SUFFIXES, "parquet": PARQUET_SUFFIXES, "list": LIST_SUFFIXES}
    if in_store or not is_remote(address):
        for kind, suffixes in kinds.items():
            if suffix in suffixes:
                return kind
    over_http = address.startswith(("http://", "https://"))
    return "json" if over_http and suffix not in _raster_suffixes() else "raster"


@cache
def _raster_suffixes() -> set[str]:
    return {*RASTER_SUFFIXES, *image_suffixes()}


def _distinct_names(addresses: Sequence[str]) -> dict[str, str]:
    """Return the names of those rasters that need more than their stem to be told apart."""
    counts = Counter(map(_stem, addresses))
    groups: dict[str, list[str]] = {}
    for address in addresses:
        if counts[_stem(address)] > 1:
            groups.setdefault(_stem(address), []).append(address)
    return {address: name for group in groups.values() for address, name in _with_folders(group).items()}


def _with_folders(addresses: list[str]) -> dict[str, str]:
    """Put as many folders' names before the stems as it takes; none if they do not help."""
    split = [re.split(r"[/\\]+", _path_of(address).strip("/\\")) for address in addresses]
    folders = [parts[:-1] for parts in split]
    for depth in range(1, max(map(len, folders)) + 1):
        names = [
            safe_name("_".join([*parts[-depth:], _stem(address)]))
            for parts, address in zip(folders, addresses, strict=True)
        ]
        if len(set(names)) == len(names):
            return dict(zip(addresses, names, strict=True))
    return {}


def _stem(address: str) -> str:
    last = re.split(r"[/\\]", _path_of(address).rstrip("/\\"))[-1]
    is_part = re.match(r"\w{2,}:", last) is not None  # of a file, such as NETCDF:a.nc:b
    return safe_name(last if is_part else PurePosixPath(last).stem)


def _path_of(address: str) -> str:
    """Return an address without its query, which may hold a signature."""
    if not address.startswith(STORES):
        return address
    place = urlsplit(address)
    return f"{place.netloc}{place.path}"
