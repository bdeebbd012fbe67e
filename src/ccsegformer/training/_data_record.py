"""Record which files a run trains on, so that it resumes with the same ones only."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ccsegformer.data.objects import ObjectImages
from ccsegformer.data.pixels import spread
from ccsegformer.errors import DataError
from ccsegformer.files import write_atomically
from ccsegformer.training._randomness import own_randomness

RECORD = "training_data.json"
DIGESTED = 16
"""Most masks of an object that are digested."""


def record_data(dataset: Any) -> dict[str, Any]:
    """Return what tells other data from these: the samples, and size and time of every file.

    Objects, which list no `files`, are told apart by the names of their samples, by a few of their masks, and
    by the files that they list in `masks` or `targets`.
    """
    names = [str(name) for name in getattr(dataset, "names", ())]
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    files: Mapping[str, Sequence[Path | str]] = getattr(dataset, "files", {})
    is_object = isinstance(dataset, ObjectImages)
    if is_object:
        files = _listed_files(dataset)
    return {
        "samples": len(dataset),
        "names_sha256": digest,
        "files": {name: [_stamp(path) for path in paths] for name, paths in files.items()},
        "masks_sha256": _digest_masks(dataset) if is_object else "",
    }


def write_data_record(output: Path, record: dict[str, Any]) -> None:
    """Write a record for `check_same_data`."""
    write_atomically(output / RECORD, json.dumps(record, ensure_ascii=False) + "\n")


def check_same_data(output: Path, record: dict[str, Any]) -> None:
    """Check that the data are those of the run in `output`; one of an earlier version has no record.

    Raises:
        DataError: They differ; the message says in what.
    """
    try:
        before = json.loads((output / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise DataError(f"{output / RECORD}: cannot be read: {error}") from error
    now = json.loads(json.dumps(record))  # turns tuples into lists
    if not (before.get("masks_sha256") and now["masks_sha256"]):  # of an earlier version, or random masks
        before["masks_sha256"] = now["masks_sha256"] = ""
    if before != now:
        raise DataError(
            f"{output / RECORD}: the run to resume had other data: {_difference(before, now)}; restore them, "
            "or train again with overwrite"
        )


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    old, new = before["files"], now["files"]
    kinds = {
        "no longer there": sorted(old.keys() - new.keys()),
        "new": sorted(new.keys() - old.keys()),
    }
    changed = [name for name in sorted(old.keys() & new.keys()) if old[name] != new[name]]
    for name in changed:
        if [stamp[0] for stamp in old[name]] != [stamp[0] for stamp in new[name]]:
            kinds.setdefault("made of other files", []).append(name)
            continue
        for was, is_now in zip(old[name], new[name], strict=False):
            if was != is_now:
                kinds.setdefault("changed (other size or time)", []).append(is_now[0])
    parts = [
        f"{len(names)} {kind}, such as {names[0]}" if len(names) > 1 else f"{names[0]} is {kind}"
        for kind, names in kinds.items()
        if names
    ]
    if before["samples"] != now["samples"]:
        parts.insert(0, f"{before['samples']} samples, now {now['samples']}")
    if before["names_sha256"] == now["names_sha256"] and not parts:
        return "other masks"
    return "; ".join(parts) or "other names of the samples"


def _listed_files(images: ObjectImages) -> dict[str, list[str | Path]]:
    """Return the mask files that an object lists in order, as torchvision's sets do, by sample."""
    for key in ("masks", "targets"):
        listed = getattr(images.data, key, None)
        if isinstance(listed, list | tuple) and len(listed) == len(images):
            rows = [list(row) if isinstance(row, list | tuple) else [row] for row in listed]
            if all(isinstance(path, str | Path) and Path(path).is_file() for row in rows for path in row):
                return dict(zip(images.names, rows, strict=True))
    return {}


def _digest_masks(images: ObjectImages) -> str:
    """Digest a few masks, evenly spread; "" if they differ when they are read again, as random crops do."""
    with own_randomness(0):  # reading leaves the generators as they were
        first, second = (_digest_once(images) for _ in range(2))
    return first if first == second else ""


def _digest_once(images: ObjectImages) -> str:
    digest = hashlib.sha256()
    for index in spread(len(images), DIGESTED):
        with suppress(DataError):  # training will say it, or leave it out
            mask = images[index]["mask"]
            digest.update(f"{index} {tuple(mask.shape)}".encode() + mask.numpy().tobytes())
    return digest.hexdigest()


def _stamp(path: Path | str) -> list[Any]:
    """Return name, bytes and time of change of a file; a remote one has its address alone."""
    try:
        status = Path(path).stat()
    except OSError:
        return [str(path)]
    return [Path(path).name, status.st_size, status.st_mtime_ns]
