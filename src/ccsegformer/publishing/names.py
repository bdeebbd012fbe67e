"""Names for the public of data and models, without the folders of the machine that they were on."""

import re
from pathlib import PurePath
from typing import NamedTuple
from urllib.parse import parse_qsl

from ccsegformer.models.origins import HUB_PREFIX

_HUB_DATA = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)")
_KNOWN = {
    "scene_parse_150": "SceneParse150 (ADE20K)",
    "procedural": "procedural (generated aerial scenes)",
}


class PublicData(NamedTuple):
    """Data set as a card names it.

    Attributes:
        title: Name for people.
        slug: Name for programs: the hub's, or the title with hyphens.
        on_hub: Name on the hub, or None.
        bands: Bands of scenes that were chosen, such as "4,3,2", or "".
    """

    title: str
    slug: str
    on_hub: str | None
    bands: str


def public_data(data: str) -> PublicData:
    """Return the public name of the data of `open_dataset`, or of a data set object."""
    name, _, query = data.partition("?")
    bands = dict(parse_qsl(query)).get("bands", "")
    if found := _HUB_DATA.match(name):
        return PublicData(found[1], found[1], found[1], bands)
    title = _KNOWN.get(name) or public_file(name)
    slug = name if name in _KNOWN else re.sub(r"[^\w.-]+", "-", title).strip("-").lower() or "data"
    return PublicData(title, slug, None, bands)


def public_model(origin: str) -> str:
    """Return the public name of an entry of `weight_origins`."""
    return origin.removeprefix(HUB_PREFIX) if origin.startswith(HUB_PREFIX) else public_file(origin)


def public_file(path: str) -> str:
    """Return the last part of a path, of POSIX or of Windows."""
    return PurePath(path.replace("\\", "/")).name or path
