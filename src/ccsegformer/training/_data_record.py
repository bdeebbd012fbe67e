"""Record which files a run trains on, so that it resumes with the same ones only."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ccsegformer.errors import DataError
from ccsegformer.files import write_atomically

RECORD = "training_data.json"


def record_data(dataset: Any) -> dict[str, Any]:
    """Return what tells other data from these: the samples, and size and time of every file.

    Data sets that list no `files` by name are told apart by the names of their samples.
    """
    names = [str(name) for name in getattr(dataset, "names", ())]
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    files: Mapping[str, Sequence[Path | str]] = getattr(dataset, "files", {})
    return {
        "samples": len(dataset),
        "names_sha256": digest,
        "files": {name: [_stamp(path) for path in paths] for name, paths in files.items()},
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
    # Through JSON, which turns tuples into lists.
    if before != (now := json.loads(json.dumps(record))):
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
    return "; ".join(parts) or "other names of the samples"


def _stamp(path: Path | str) -> list[Any]:
    """Return name, bytes and time of change of a file; a remote one has its address alone."""
    try:
        status = Path(path).stat()
    except OSError:
        return [str(path)]
    return [Path(path).name, status.st_size, status.st_mtime_ns]
