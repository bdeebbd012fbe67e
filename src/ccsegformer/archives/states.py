"""Tell whether a source has changed: its entity tag, or its size and modification time."""

from typing import Any

from ccsegformer.raster.read import open_raster
from ccsegformer.raster.remote import remote_state
from ccsegformer.raster.source_files import files_of, is_over_network


def state_of(href: str) -> dict[str, Any]:
    """Return what changes when a source does.

    Args:
        href: Path or address, as in `SceneAsset`.

    Returns:
        As `remote_state` for an address; for a local raster `files`, the path, size and modification time
        (ns) of each file that it is made of.

    Raises:
        DataError: the source is not there, or its server fails.
    """
    if is_over_network(href):
        return remote_state(href)
    with open_raster(href) as source:
        states = [(file, file.stat()) for file in sorted(files_of(source))]
    return {"files": [[str(file), status.st_size, status.st_mtime_ns] for file, status in states]}
