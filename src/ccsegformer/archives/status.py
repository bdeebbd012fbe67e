"""How far an archive is, read from its outputs alone."""

import json
from typing import NamedTuple

from ccsegformer.archives.store import Store, read_each


class ArchiveStatus(NamedTuple):
    """What lies in an archive's output."""

    mapped: frozenset[str]
    """Names of scenes with an item."""
    unfinished: frozenset[str]
    """Names of scenes that were begun and have neither an item nor failed."""
    failed: dict[str, str]
    """Reasons, in one line, by the names of scenes that failed."""


def read_status(store: Store) -> ArchiveStatus:
    """Read the status of an archive, while it is mapped or afterwards."""
    begun, mapped = set(), set()
    for key in store.keys("scenes/"):
        _, name, file = key.split("/", 2)
        begun.add(name)
        if file == f"{name}.json":
            mapped.add(name)
    failed = {}
    for content in read_each(store, list(store.keys("failed/"))):
        if content:
            record = json.loads(content)
            failed[record["name"]] = record["reason"]
    return ArchiveStatus(frozenset(mapped), frozenset(begun - mapped - set(failed)), failed)
