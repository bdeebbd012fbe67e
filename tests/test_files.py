import errno
import os
from pathlib import Path

import pytest

from ccsegformer.errors import OutputError
from ccsegformer.files import write_atomically


def test_writes_text_and_bytes_and_creates_folders(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "a.txt", "naïve")
    write_atomically(str(tmp_path / "b.bin"), b"\x00\xff")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "naïve".encode()
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.json"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"metrics\.json: cannot be written: No space left on device"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_is_a_folder_or_below_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="taken"):
        write_atomically(tmp_path / "taken", "text")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="inside"):
        write_atomically(tmp_path / "file" / "inside", "text")
    assert {path.name for path in tmp_path.iterdir()} == {"taken", "file"}
