"""Where an archive's outputs go: a local folder or an object store. Every write is whole or not at all."""

import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError

from ccsegformer.errors import OutputError
from ccsegformer.files import write_atomically, written_aside
from ccsegformer.raster.remote import first_line, object_store

READS_AT_ONCE = 32
"""Number of objects that `read_each` reads at a time; an object store takes some 20 ms for each."""
READ_BATCH = 1000
"""Number of objects that it holds in memory."""


@dataclass(frozen=True)
class Store:
    """A folder, or a prefix in a bucket. Keys are relative, with `/` between their parts.

    Object stores take credentials and endpoint from the environment, for instance from
    `AWS_ACCESS_KEY_ID` and `AWS_ENDPOINT_URL`, or from the role of the machine, but not from `~/.aws`.
    Methods raise `OutputError` if a store or disk refuses.
    """

    address: str
    """Absolute path, or `s3://BUCKET/PREFIX`, `gs://...`, `az://...`, without a slash at the end."""

    def get(self, key: str) -> bytes | None:
        """Return an object's content, or None if there is none."""
        try:
            if path := self.local(key):
                return path.read_bytes() if path.is_file() else None
            return bytes(obstore.get(self._remote, key).bytes())
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            raise self._refused(key, "cannot be read", error) from error

    def put(self, key: str, content: bytes) -> None:
        """Write an object; one of the same key is replaced."""
        if path := self.local(key):
            write_atomically(path, content)
            return
        try:
            obstore.put(self._remote, key, content)
        except (BaseError, OSError) as error:
            raise self._refused(key, "cannot be written", error) from error

    def append(self, key: str, content: bytes) -> None:
        """Add to the end of an object; in an object store, it is read and written again."""
        path = self.local(key)
        if path is None:
            self.put(key, (self.get(key) or b"") + content)
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as file:  # one call of the system: no kill leaves a half
                file.write(content)
        except OSError as error:
            raise self._refused(key, "cannot be written", error) from error

    def put_file(self, key: str, file: Path) -> None:
        """Copy a file into the store, in parts if it is large; they become an object when all are there."""
        if path := self.local(key):
            if path.absolute() != file.absolute():
                with written_aside(path) as partial:
                    shutil.copyfile(file, partial)
            return
        try:
            obstore.put(self._remote, key, file)
        except (BaseError, OSError) as error:
            raise self._refused(key, "cannot be written", error) from error

    def delete(self, key: str) -> None:
        """Delete an object if there is one."""
        try:
            if path := self.local(key):
                path.unlink(missing_ok=True)
                return
            obstore.delete(self._remote, key)
        except FileNotFoundError:
            pass
        except (BaseError, OSError) as error:
            raise self._refused(key, "cannot be deleted", error) from error

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys in a folder, such as `scenes/`, and the folders in it, in no order.

        Of a local folder, hidden files and those in hidden folders are left out: they are unfinished.
        """
        if folder := self.local(prefix):
            for found in folder.rglob("*"):
                key = found.relative_to(self.address)
                if not any(part.startswith(".") for part in key.parts) and found.is_file():
                    yield key.as_posix()
            return
        try:
            for batch in obstore.list(self._remote, prefix or None, chunk_size=1000):
                yield from (meta["path"] for meta in batch)
        except (BaseError, OSError) as error:
            raise self._refused(prefix, "cannot be listed", error) from error

    def local(self, key: str = "") -> Path | None:
        """Return the path of a key in a local folder; None in an object store."""
        return None if "://" in self.address else Path(self.address) / key

    def href(self, key: str) -> str:
        """Return the address of a key."""
        return f"{self.address}/{key}"

    @property
    def _remote(self) -> Any:
        return object_store(self.address)

    def _refused(self, key: str, what: str, error: Exception) -> OutputError:
        reason = first_line(error)
        return OutputError(f"{self.href(key)}: {what}: {reason}")


def read_each(store: Store, keys: Sequence[str]) -> Iterator[bytes]:
    """Yield the contents of objects in the order of their keys, empty for a missing one; read many at once.

    Raises:
        OutputError: as `Store.get`.
    """
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        for begin in range(0, len(keys), READ_BATCH):
            for content in pool.map(store.get, keys[begin : begin + READ_BATCH]):
                yield content or b""


def open_store(output: str | Path) -> Store:
    """Open a local folder or an object store for an archive's outputs.

    Raises:
        OutputError: the address has a scheme that is unknown, or no bucket.
    """
    if not re.match(r"\w+:/", str(output)):
        return Store(str(Path(output).absolute()))
    if not re.match("(s3|gs|az)://[^/]", str(output)):
        raise OutputError(f"{output}: not a folder, s3://BUCKET/PREFIX, gs://... or az://...")
    text = str(output).rstrip("/")
    try:
        object_store(text)
    except (BaseError, ValueError) as error:
        reason = first_line(error)
        raise OutputError(f"{output}: not a folder or object store: {reason}") from error
    return Store(text)


def item_key(name: str) -> str:
    """Return the key of a map's STAC item."""
    return f"scenes/{name}/{name}.json"


def failure_key(name: str) -> str:
    """Return the key of the record of a scene that failed."""
    return f"failed/{name}.json"
