"""Folders of images and masks in the layout of ADE20K's SceneParse150 release."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ccsegformer.data.dataset import Sample, check_size, to_labels
from ccsegformer.data.images import read_image
from ccsegformer.data.labels import Classes
from ccsegformer.data.scene_parse_150.labels import ReadMask, chosen_labels, folder_labels
from ccsegformer.errors import DataError


class ImageMaskFolder(Dataset[Sample]):
    """Images `images/SPLIT/NAME.*` with masks `annotations/SPLIT/NAME.png` and `classes.json`.

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
        self.classes, self._read_mask = chosen_labels(classes) if classes else folder_labels(self.root)
        folder = self.root / "images" / split
        images = files_by_stem(folder, Image.registered_extensions())
        masks = files_by_stem(self.root / "annotations" / split, [".png"])
        if not images:
            raise DataError(f"{folder}: no images in this split")
        if unlabelled := sorted(images.keys() - masks.keys()):
            missing = self.root / "annotations" / split / f"{unlabelled[0]}.png"
            raise DataError(f"{missing}: mask is missing{and_more(unlabelled)}; every image needs one")
        if orphans := sorted(masks.keys() - images.keys()):
            raise DataError(f"{masks[orphans[0]]}: mask without an image in {folder}{and_more(orphans)}")
        self.names: tuple[str, ...] = tuple(sorted(images))
        self._files = [(images[name], masks[name]) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Read a sample and check its size and labels."""
        image_path, mask_path = self._files[index]
        image, mask = read_image(image_path), self._read_mask(mask_path, None)
        check_size(mask, image, mask_path, image_path)
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


def and_more(names: Sequence[str]) -> str:
    """Return " (and N more)" for the names after the first, or nothing."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
