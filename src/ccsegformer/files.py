"""Files that appear whole or not at all; nothing but the errors is imported from the package."""

import os
from pathlib import Path

from ccsegformer.errors import OutputError


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) beside `path`, then rename it into place; missing folders are made.

    A reader finds the old file or the whole new one, never a part, and nothing is left behind by a failure.

    Raises:
        OutputError: the file cannot be written; the message names it and the reason, such as a full disk.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # a full disk must be noticed before the old file is replaced
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
