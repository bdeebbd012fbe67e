"""What is known of a scene before it is opened: small enough to be sent to any worker."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SceneAsset:
    """One file of a scene."""

    href: str
    """Absolute path of a file, or address: `https://...`, `s3://...`, or whatever else GDAL opens."""
    scale: float | None = None
    """Factor from stored to physical values that the scene's STAC item gives; None leaves the file's own."""
    offset: float | None = None
    """Physical value of a stored 0, likewise."""
    nodata: float | None = None
    """Value of pixels without data that the item gives; None leaves the file's own."""


@dataclass(frozen=True)
class SceneReference:
    """One scene of an archive."""

    name: str
    """Name of the scene's outputs, unique in the archive; usable as a file name."""
    assets: tuple[SceneAsset, ...]
    """One file, or several with a single band each, which are stacked in this order."""
    item: str | None = None
    """Address of the scene's STAC item."""
    datetime: str | None = None
    """Time of acquisition that the item gives, as in RFC 3339."""
    problem: str | None = None
    """Why the scene cannot be mapped, such as an item without the asset asked for."""
