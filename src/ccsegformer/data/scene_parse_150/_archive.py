"""The official archive of SceneParse150: what may be unpacked from it, and whether that is the whole set."""

import stat
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from ccsegformer.data.download import OnBytes, require_space
from ccsegformer.data.scene_parse_150.labels import LISTING
from ccsegformer.errors import DataError, OutputError

TOP = "ADEChallengeData2016"
LISTINGS = (LISTING, "sceneCategories.txt")
KINDS = {"images": ".jpg", "annotations": ".png"}
MOST_BYTES = 8 << 30  # unpacked; the real set has about 1 GB, a zip bomb more
MOST_BYTES_OF_A_FILE = 64 << 20
BLOCK = 4096  # bytes by which files grow on most disks


def unpack(archive: Path, folder: Path, pairs: Mapping[str, int], on_bytes: OnBytes) -> None:
    """Unpack the set's files, and no others, into the new folder `folder`; every file's CRC is checked.

    Nothing is written before the archive's listing is known to be whole and safe. A failure may leave a part.

    Args:
        archive: the zip file.
        folder: to be made; its parent exists.
        pairs: how many images with annotations each split has.
        on_bytes: called with the bytes unpacked so far, and those to unpack.

    Raises:
        DataError: the archive is damaged, unsafe, or another one.
        OutputError: a file cannot be written.
    """
    try:
        opened = zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise DataError(f"{archive}: not a whole zip archive: {error}") from error
    except OSError as error:
        raise DataError(f"{archive}: cannot be read: {error.strerror or error}") from error
    with opened:
        members = _members(archive, opened, pairs)
        size, done = sum(member.file_size for member in members.values()), 0
        require_space(folder.parent, size + BLOCK * len(members))
        for name, member in members.items():
            content, target = _read(archive, opened, member), folder / name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            except OSError as error:
                raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error
            done += member.file_size
            on_bytes(done, size)


def _read(archive: Path, opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A file's content, which agrees with its CRC; whatever zipfile raises of a damaged one is one line."""
    try:
        return opened.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{archive}: damaged at {member.filename}: {str(error) or 'it ends early'}"
        ) from error


def check_pairs(names: Iterable[str], pairs: Mapping[str, int]) -> None:
    """Make sure that every image has its annotation, and that each split has as many as it should.

    Args:
        names: the set's files, as "images/training/NAME.jpg"; others are passed over.
        pairs: how many images with annotations each split has.

    Raises:
        DataError: the first file without its counterpart, or a count.
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
            raise DataError(f"{split}: {len(images):,} images with annotations instead of {count:,}")


def _members(archive: Path, opened: zipfile.ZipFile, pairs: Mapping[str, int]) -> dict[str, zipfile.ZipInfo]:
    """The set's files by their path in the set; others, such as a desktop's own, are passed over.

    Raises:
        DataError: a name that is unsafe, a link, a file twice, too many bytes, or other files.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    tops: set[str] = set()
    for member in opened.infolist():
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename:
            raise DataError(f"{archive}: unsafe: {member.filename!r} leads out of the folder")
        if not member.filename.isprintable():
            raise DataError(f"{archive}: unsafe: {member.filename!r} is no name")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(f"{archive}: unsafe: {member.filename!r} is a link")
        tops.update(path.parts[:1])
        inner = PurePosixPath(*path.parts[1:])
        wanted = str(inner) in LISTINGS or (_is_of_a_pair(inner) and inner.parts[1] in pairs)
        if path.parts[:1] != (TOP,) or member.is_dir() or not wanted:
            continue
        if str(inner) in members:
            raise DataError(f"{archive}: {member.filename!r} is there twice")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{archive}: {member.filename!r} is packed in an unknown way")
        if member.file_size > MOST_BYTES_OF_A_FILE:
            raise DataError(f"{archive}: unsafe: {member.filename!r} has {member.file_size:,} bytes")
        members[str(inner)] = member
    if LISTING not in members:
        full = "full ADE20K" if any(top.startswith("ADE20K") for top in tops) else "another archive"
        found = ", ".join(sorted(tops)[:3]) or "nothing"
        raise DataError(f"{archive}: {full}, not SceneParse150: it has no {TOP}/{LISTING}, but {found}")
    if sum(member.file_size for member in members.values()) > MOST_BYTES:
        raise DataError(f"{archive}: unsafe: it unpacks to more than {MOST_BYTES >> 30} GiB")
    try:
        check_pairs(members, pairs)
    except DataError as error:
        raise DataError(f"{archive}: {error}") from None
    return members


def _is_of_a_pair(path: PurePosixPath) -> bool:
    """Whether this is where an image or an annotation of some split is; hidden files are neither."""
    known = len(path.parts) == 3 and path.suffix == KINDS.get(path.parts[0])
    return known and not path.name.startswith(".")
