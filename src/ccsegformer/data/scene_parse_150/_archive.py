"""Unpack the official SceneParse150 archive after checking that it is safe and complete."""

import stat
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from ccsegformer.data.download import OnBytes
from ccsegformer.data.scene_parse_150.labels import LISTING
from ccsegformer.errors import DataError, OutputError
from ccsegformer.files import require_space

TOP = "ADEChallengeData2016"
LISTINGS = (LISTING, "sceneCategories.txt")
KINDS = {"images": ".jpg", "annotations": ".png"}
MOST_BYTES = 8 << 30  # unpacked, against zip bombs; the real data set has about 1 GB
MOST_BYTES_OF_A_FILE = 64 << 20
DISK_BLOCK = 4096  # allocation unit of most disks, in bytes


def unpack(archive: Path, folder: Path, pairs: Mapping[str, int], on_bytes: OnBytes) -> None:
    """Unpack only the files of the data set into the new folder `folder`, checking every CRC.

    The listing is checked before anything is written. A later failure may leave some of the files.

    Args:
        archive: Path of the zip file.
        folder: Folder to create; its parent exists.
        pairs: Number of annotated images in each split.
        on_bytes: Callback taking the bytes unpacked so far and their total.

    Raises:
        DataError: The archive is damaged, unsafe or a different one.
        OutputError: A file cannot be written.
    """
    try:
        opened = zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise DataError(f"{archive}: not a whole zip archive: {error}") from error
    except OSError as error:
        raise DataError(f"{archive}: cannot be read: {error.strerror or error}") from error
    with opened:
        members = _check_members(archive, opened, pairs)
        size, done = sum(member.file_size for member in members.values()), 0
        require_space(folder.parent, size + DISK_BLOCK * len(members))
        for name, member in members.items():
            content, target = _read_member(archive, opened, member), folder / name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            except OSError as error:
                raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error
            done += member.file_size
            on_bytes(done, size)


def _read_member(archive: Path, opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Read a file and check its CRC; turn everything that zipfile raises into one line."""
    try:
        return opened.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{archive}: damaged at {member.filename}: {str(error) or 'truncated'}") from error


def check_pairs(names: Iterable[str], pairs: Mapping[str, int]) -> None:
    """Check that images and annotations match and that each split has the right number.

    Args:
        names: Files of the data set, such as "images/training/NAME.jpg"; others are skipped.
        pairs: Number of annotated images in each split.

    Raises:
        DataError: A file without its counterpart, or a wrong number; the message names it.
    """
    stems: dict[tuple[str, ...], set[str]] = {}
    for path in map(PurePosixPath, names):
        if _is_of_a_pair(path):
            stems.setdefault(path.parts[:2], set()).add(path.stem)
    for split, count in pairs.items():
        images, masks = (stems.get((kind, split), set()) for kind in KINDS)
        for alone, lacking in ((images - masks, "annotation"), (masks - images, "image")):
            if alone:
                raise DataError(f"{split}: {min(alone)} has no {lacking}")
        if len(images) != count:
            raise DataError(f"{split}: {len(images):,} annotated images instead of {count:,}")


def _check_members(
    archive: Path, opened: zipfile.ZipFile, pairs: Mapping[str, int]
) -> dict[str, zipfile.ZipInfo]:
    """Map the files of the data set by their paths in it; skip others, such as a desktop's.

    Raises:
        DataError: An unsafe name, a link, a repeated file, too many bytes, or a different data set.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    tops: set[str] = set()
    for member in opened.infolist():
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename:
            raise DataError(f"{archive}: unsafe: {member.filename!r} points outside the folder")
        if not member.filename.isprintable():
            raise DataError(f"{archive}: unsafe: {member.filename!r} is not a printable name")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(f"{archive}: unsafe: {member.filename!r} is a link")
        tops.update(path.parts[:1])
        inner = PurePosixPath(*path.parts[1:])
        wanted = str(inner) in LISTINGS or (_is_of_a_pair(inner) and inner.parts[1] in pairs)
        if path.parts[:1] != (TOP,) or member.is_dir() or not wanted:
            continue
        if str(inner) in members:
            raise DataError(f"{archive}: {member.filename!r} occurs twice")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{archive}: {member.filename!r} uses an unsupported compression")
        if member.file_size > MOST_BYTES_OF_A_FILE:
            raise DataError(f"{archive}: unsafe: {member.filename!r} has {member.file_size:,} bytes")
        members[str(inner)] = member
    if LISTING not in members:
        full = "full ADE20K" if any(top.startswith("ADE20K") for top in tops) else "another archive"
        found = ", ".join(sorted(tops)[:3]) or "nothing at all"
        raise DataError(f"{archive}: {full}, not SceneParse150: no {TOP}/{LISTING}, only {found}")
    if sum(member.file_size for member in members.values()) > MOST_BYTES:
        raise DataError(f"{archive}: unsafe: it unpacks to more than {MOST_BYTES >> 30} GiB")
    try:
        check_pairs(members, pairs)
    except DataError as error:
        raise DataError(f"{archive}: {error}") from None
    return members


def _is_of_a_pair(path: PurePosixPath) -> bool:
    """Whether this is the path of an image or annotation; hidden files are not."""
    known = len(path.parts) == 3 and path.suffix == KINDS.get(path.parts[0])
    return known and not path.name.startswith(".")
