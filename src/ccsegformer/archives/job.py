"""What a run over an archive does to every scene, and what came of one: small, and sent between processes."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn

from ccsegformer.archives.reference import SceneReference
from ccsegformer.data.labels import Classes
from ccsegformer.labelling.budget import MEMORY
from ccsegformer.labelling.engine import EngineName, Precision
from ccsegformer.labelling.preprocess import Preprocessing

Status = Literal["mapped", "kept", "failed"]


@dataclass(frozen=True)
class ArchiveJob:
    """Arguments that are the same for every scene; those of `predict_scene` mean the same."""

    model: str | nn.Module
    output: str
    """Folder, or address in an object store."""
    classes: Classes | None = None
    preprocessing: Preprocessing | None = None
    bands: tuple[int, ...] | None = None
    window: int | None = None
    overlap: int | None = None
    memory: int | str = MEMORY
    """Memory of each worker."""
    confidence: bool = False
    polygons: bool = False
    simplify: float | None = None
    engine: EngineName | None = None
    precision: Precision | None = None
    retries: int = 3
    """How often a scene is tried again whose server failed or whose worker died."""
    pause: float = 1.0
    """Seconds before the first retry; doubled for each further one."""
    scratch: str | None = None
    """Folder for maps on their way to an object store; by default the system's temporary folder."""


class SceneResult(NamedTuple):
    """What came of one scene."""

    scene: SceneReference
    status: Status
    """`kept` if an earlier run has mapped it with the same model, arguments and source."""
    item: str = ""
    """Address of the map's STAC item."""
    reason: str = ""
    """Why it failed, in one line."""
    attempts: int = 1
    seconds: float = 0.0
    area_km2: float = 0.0
    """Area of the scene on the ellipsoid; 0 if it has no CRS or was not mapped in this run."""
    notes: tuple[str, ...] = ()
    """Warnings, see `SceneMap`."""
