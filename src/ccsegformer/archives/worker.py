"""Map one scene of an archive after another, in whatever process: a worker of this machine or a Ray actor.

An error in a scene never leaves the worker: it comes back as the scene's result.
"""

import hashlib
import json
import re
import shutil
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely

from ccsegformer.archives.item import encode_item, map_item, read_fingerprint
from ccsegformer.archives.job import ArchiveJob, SceneResult
from ccsegformer.archives.reference import SceneReference
from ccsegformer.archives.stack import opened_as_one
from ccsegformer.archives.states import state_of
from ccsegformer.archives.store import Store, failure_key, item_key, open_store
from ccsegformer.data.labels import Classes
from ccsegformer.errors import CCSegformerError, DataError, EngineError, OutputError
from ccsegformer.labelling.engine import Engine
from ccsegformer.labelling.loading import load_engine, open_segmenter
from ccsegformer.labelling.model_item import is_model_item
from ccsegformer.labelling.scene import SceneMap, predict_scene
from ccsegformer.raster._areas import map_geometry
from ccsegformer.raster.read import open_raster
from ccsegformer.raster.remote import remote_modified
from ccsegformer.raster.source_files import forget, is_over_network

PERMANENT = r"(code: |answers )(401|403|404|410)\b|No such key|does not exist|Access Denied"
"""Matches answers of servers after which trying again does not help; a number alone may be in a name."""
SOURCE = ".source"
"""Folder for the file that makes one raster of a scene's assets, beside the map while it is at work."""


class SceneMapper(NamedTuple):
    """A model that is ready to map scenes, and where to."""

    job: ArchiveJob
    engine: Engine
    classes: Classes
    store: Store
    digest: str
    """Identifies model and arguments."""

    def map(self, scene: SceneReference) -> SceneResult:
        """Map a scene unless that has been done; try again if a server fails.

        Raises:
            OutputError: the output cannot be written, which would befall every scene.
        """
        begun = time.monotonic()
        for attempt in range(1, self.job.retries + 2):
            try:
                result = self._attempt(scene)
                break
            except OutputError:
                raise
            except Exception as error:  # whatever is wrong with a scene must not end the others
                reason = _one_line(error)
                trace = "" if isinstance(error, CCSegformerError) else traceback.format_exc()
                write_log(self.store, scene, "failed", attempt=attempt, reason=reason, trace=trace)
                if attempt > self.job.retries or not _comes_back(error, scene):
                    result = record_failure(self.store, scene, reason, attempt)
                    break
                time.sleep(self.job.pause * 2 ** (attempt - 1))
                for asset in scene.assets:
                    forget(asset.href)
        return result._replace(attempts=attempt, seconds=time.monotonic() - begun)

    def _attempt(self, scene: SceneReference) -> SceneResult:
        if scene.problem:
            raise DataError(scene.problem)
        fingerprint = self._fingerprint(scene)
        key = item_key(scene.name)
        found = self.store.get(key)
        if found is not None and read_fingerprint(found) == fingerprint:
            return SceneResult(scene, "kept", self.store.href(key))
        if found is not None:  # of another model, other arguments or an earlier state of the source
            self.store.delete(key)
        return self._write(scene, fingerprint)

    def _write(self, scene: SceneReference, fingerprint: str) -> SceneResult:
        """Write the map and its polygons, then the item, which says that they are whole."""
        key = item_key(scene.name)
        folder = self.store.local(f"scenes/{scene.name}") or self._scratch(scene)
        folder.mkdir(parents=True, exist_ok=True)
        files = {"map": folder / f"{scene.name}.tif"}
        if self.job.polygons:
            files["polygons"] = folder / f"{scene.name}.parquet"
        done = self._predict(scene, folder, files)
        files["names"] = folder / f"{scene.name}.tif.aux.xml"
        area = _area_km2(files["map"])
        properties = self._properties(done, area) | _source_date(scene)
        name = _model_name(self.job.model)
        model = name if is_model_item(name) else None
        item = map_item(
            scene, files, self.classes, fingerprint=fingerprint, properties=properties, model=model
        )
        if self.store.local("") is None:
            for file in files.values():
                self.store.put_file(f"scenes/{scene.name}/{file.name}", file)
            shutil.rmtree(folder)
        self.store.put(key, encode_item(item))
        shutil.rmtree(folder / SOURCE, ignore_errors=True)
        self.store.delete(failure_key(scene.name))
        write_log(self.store, scene, "mapped", window=done.window, notes=done.notes)
        return SceneResult(scene, "mapped", self.store.href(key), area_km2=area, notes=done.notes)

    def _predict(self, scene: SceneReference, folder: Path, files: dict[str, Path]) -> SceneMap:
        job = self.job
        return predict_scene(
            self.engine,
            opened_as_one(scene, folder / SOURCE),
            files["map"],
            classes=self.classes,
            bands=wanted_bands(job.bands, scene, self.engine),
            window=job.window,
            overlap=job.overlap,
            memory=job.memory,
            confidence=job.confidence,
            polygons=files.get("polygons"),
            simplify=job.simplify,
        )

    def _fingerprint(self, scene: SceneReference) -> str:
        """Identify a map by its model, arguments and source."""
        # Without the query of an address: signatures change from day to day.
        hrefs = [asset.href.partition("?")[0] for asset in scene.assets]
        how = [[asset.scale, asset.offset, asset.nodata] for asset in scene.assets]
        states = [state_of(asset.href) for asset in scene.assets]
        return _sha256([self.digest, scene.name, hrefs, how, states])

    def _properties(self, done: SceneMap, area: float) -> dict[str, Any]:
        return {
            "ccsegformer:model": _model_name(self.job.model),
            "ccsegformer:engine": self.engine.describe(),
            "ccsegformer:window": [done.window, done.overlap],
            "ccsegformer:area_km2": round(area, 6),
        }

    def _scratch(self, scene: SceneReference) -> Path:
        """Return the folder for a map on its way to an object store, the same in every run."""
        base = Path(self.job.scratch or tempfile.gettempdir())
        return base / f"ccsegformer-{_sha256(self.job.output)[:16]}" / scene.name


def wanted_bands(
    chosen: tuple[int, ...] | None, scene: SceneReference, engine: Engine
) -> tuple[int, ...] | None:
    """Return the bands to read: of stacked assets all, in the order that the person gave.

    The bands that a model was trained on are numbers in a file of its training, not in a stack.
    """
    if chosen is None and engine.scene_bands and len(scene.assets) > 1:
        return tuple(range(1, len(scene.assets) + 1))
    return chosen


def open_mapper(job: ArchiveJob) -> SceneMapper:
    """Open the model and the output of a job.

    Raises:
        CheckpointError, DataError, EngineError: as `load_engine`.
        OutputError: the output is not a place to write to.
    """
    if isinstance(job.model, str):
        engine, classes = load_engine(
            job.model, job.engine, job.precision, classes=job.classes, preprocessing=job.preprocessing
        )
    else:
        engine, classes = open_segmenter(job.model, job.classes, job.engine, job.precision)
        engine = engine.with_preprocessing(job.preprocessing or engine.preprocessing)
    if engine.digest is None:
        raise EngineError(
            f"{_model_name(job.model)}: has hooks, so later runs cannot recognise its maps; save it without"
        )
    model = [engine.digest(), engine.preprocessing, classes.names, classes.palette, classes.ignore_index]
    # Not the memory: it may be lowered in the middle of an archive.
    arguments = [job.bands, job.window, job.overlap, job.confidence, job.polygons, job.simplify]
    digest = _sha256([model, arguments, job.engine, job.precision])
    return SceneMapper(job, engine, classes, open_store(job.output), digest)


def record_failure(store: Store, scene: SceneReference, reason: str, attempts: int) -> SceneResult:
    """Record that a scene has failed for good."""
    record = {"name": scene.name, "href": source_of(scene), "reason": reason, "attempts": attempts}
    store.put(failure_key(scene.name), json.dumps(record, ensure_ascii=False).encode())
    return SceneResult(scene, "failed", reason=reason, attempts=attempts)


def source_of(scene: SceneReference) -> str:
    """Return the address by which users know a scene: its item's, or its first file's."""
    return scene.item or next((asset.href for asset in scene.assets), scene.name)


def write_log(store: Store, scene: SceneReference, event: str, **about: Any) -> None:
    """Add a line to a scene's log."""
    line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **about}
    content = json.dumps(line, ensure_ascii=False).encode() + b"\n"
    store.append(f"scenes/{scene.name}/{scene.name}.log", content)


def _comes_back(error: Exception, scene: SceneReference) -> bool:
    """Return whether the scene may be read later: its server failed, and did not say that it is not there."""
    remote = any(is_over_network(asset.href) for asset in scene.assets)
    return remote and isinstance(error, DataError) and not re.search(PERMANENT, str(error))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, CCSegformerError) else f"{type(error).__name__}: {text}"


def _source_date(scene: SceneReference) -> dict[str, str]:
    """Return when a file on a server was modified, if the server says."""
    if not is_over_network(scene.assets[0].href):
        return {}
    modified = remote_modified(scene.assets[0].href)
    return {"datetime": modified.isoformat()} if modified else {}


def _area_km2(label_map: Path) -> float:
    """Compute the area of a map on the ellipsoid; 0 without a CRS."""
    with open_raster(label_map) as source:
        geometry = map_geometry(source)
        if geometry.crs is None:
            return 0.0
        outline = np.array([shapely.box(0, 0, source.width, source.height)], object)
        area = float(geometry.areas(geometry.to_map_densified(outline))[0]) / 1e6
    return area if np.isfinite(area) else 0.0


def _model_name(model: Any) -> str:
    return str(model) if isinstance(model, str | Path) else type(model).__name__


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()
