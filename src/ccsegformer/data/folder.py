"""Folders of images and masks, in the layout of ADE20K's SceneParse150 release and similar ones."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch.utils.data import Dataset
from torchvision import tv_tensors

from ccsegformer.data.dataset import Sample, check_size, to_labels
from ccsegformer.data.images import read_image, read_mask
from ccsegformer.data.labels import Classes
from ccsegformer.data.layout import Pair, find_pairs
from ccsegformer.data.pairs import check_orientation, check_palette
from ccsegformer.data.scene_parse_150.labels import ReadMask, chosen_labels, folder_labels
from ccsegformer.errors import DataError

COUNTED = 200
"""Number of masks in which ids are counted for a message."""


class ImageMaskFolder(Dataset[Sample]):
    """Images `images/SPLIT/NAME.*` with masks `annotations/SPLIT/NAME.png` and `classes.json`.

    Other names of folders, splits and masks are those of `find_pairs`.

    A folder with `objectInfo150.txt` and no `classes.json` is the official SceneParse150 release. Samples are
    sorted by name. The constructor checks, by file name, that every image has a mask; sizes and labels are
    checked each time a sample is read.

    Args:
        root: Folder of the data set.
        split: Name of the split.
        classes: Path of another `classes.json`, or "scene_parse_150" for masks of its raw ids.

    Raises:
        DataError: A missing folder, mask or image, an empty split, or an invalid classes.json.
    """

    def __init__(self, root: str | Path, split: str = "training", *, classes: str | None = None) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{root}: no such folder")
        self.split = split
        self.classes: Classes
        self._read_mask: ReadMask
        listing = self.root / "classes.json"
        try:
            self.classes, self._read_mask = chosen_labels(classes) if classes else folder_labels(self.root)
        except DataError as error:
            if classes or listing.exists() or not str(error).startswith(f"{listing}: "):
                raise
            raise DataError(_without_classes(listing, find_pairs(self.root, split))) from None
        pairs = find_pairs(self.root, split, in_colors=bool(self.classes.colors))
        self.names: tuple[str, ...] = tuple(pair.name for pair in pairs)
        self.files = {pair.name: (pair.image, pair.mask) for pair in pairs}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Read a sample and check its size and labels."""
        image_path, mask_path = self.files[self.names[index]]
        image, mask = read_image(image_path), self._read_mask(mask_path, None)
        check_orientation(mask, image, mask_path, image_path)
        check_size(mask, image, mask_path, image_path)
        if self._read_mask is read_mask and not self.classes.label_map:
            check_palette(mask, self.classes, mask_path)  # elsewhere the palette is that of raw ids
        mask = tv_tensors.Mask(to_labels(mask, self.classes, mask_path))
        return {"image": image, "mask": mask, "name": self.names[index]}


def files_by_stem(folder: Path, extensions: Iterable[str]) -> dict[str, Path]:
    """Map the files with these extensions by their stems; skip hidden and other files.

    Raises:
        DataError: No such folder, or two files with one stem.
    """
    if not folder.is_dir():
        others = sorted(path.name for path in folder.parent.glob("*/") if path.is_dir())
        hint = f"; the splits here are {', '.join(others)}" if others else ""
        raise DataError(f"{folder}: no such folder{hint}")
    extensions = set(extensions)
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in extensions or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DataError(f"{path}: has the stem of {found[path.stem].name}; rename one")
        found[path.stem] = path
    return found


def _without_classes(listing: Path, pairs: Sequence[Pair]) -> str:
    """Say which ids the masks hold, and propose a classes.json."""
    counts: Counter[int] = Counter()
    for pair in pairs[:COUNTED]:
        ids, pixels = read_mask(pair.mask).unique(return_counts=True)
        counts.update(dict(zip(ids.tolist(), pixels.tolist(), strict=True)))
    total, ids = counts.total(), sorted(counts)
    listed = ", ".join(f"{label} ({counts[label] / total:.2%})" for label in ids[:20])
    listed += f" and {len(ids) - 20} more" if len(ids) > 20 else ""
    ignored = 65535 if ids[-1] > 255 else 255
    names = [f"class {label}" for label in range(max([1, *(i for i in ids if i != ignored)]) + 1)]
    where = "the masks hold" if len(pairs) <= COUNTED else f"the first {COUNTED} masks hold"
    return (
        f"{listing}: no such file; {where} the ids {listed}; write it with your names: "
        f"{json.dumps({'names': names, 'ignore_index': ignored})}"
        + (" (if 255 is a class, save it under another id)" if ids == [0, 255] else "")
    )
