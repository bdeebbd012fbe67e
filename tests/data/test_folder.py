import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ccsegformer.data.folder import ImageMaskFolder
from ccsegformer.errors import DataError

NAMES = ("b.day1", "a")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images of 6x4 pixels, their masks and three classes."""
    generator = np.random.default_rng(0)
    for kind in ("images", "annotations"):
        (tmp_path / kind / "training").mkdir(parents=True)
    for name in NAMES:
        image = Image.fromarray(generator.integers(0, 256, (4, 6, 3), dtype=np.uint8))
        image.save(tmp_path / "images" / "training" / f"{name}.jpg")
        mask = generator.choice(np.array([0, 1, 2, 255], dtype=np.uint8), (4, 6))
        Image.fromarray(mask).save(tmp_path / "annotations" / "training" / f"{name}.png")
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["x", "y", "z"], "ignore_index": 255}))
    return tmp_path


def save_mask(root: Path, ids: list[list[int]]) -> None:
    Image.fromarray(np.array(ids, dtype=np.uint8)).save(root / "annotations" / "training" / "a.png")


def test_samples_are_in_the_order_of_their_names(root: Path) -> None:
    (root / "images" / "training" / "notes.txt").write_text("not an image")
    (root / "images" / "training" / ".hidden.jpg").write_text("not an image")
    dataset = ImageMaskFolder(root)
    assert dataset.names == ("a", "b.day1")
    assert len(dataset) == 2
    assert dataset.classes.names == ("x", "y", "z")
    for index, name in enumerate(dataset.names):
        sample = dataset[index]
        assert sample["name"] == name
        assert sample["image"].shape == (3, 4, 6)
        stored = np.asarray(Image.open(root / "annotations" / "training" / f"{name}.png"))
        np.testing.assert_array_equal(sample["mask"], stored)


def test_a_pickled_data_set_reads_the_same(root: Path) -> None:
    dataset = ImageMaskFolder(root)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[1]["image"], dataset[1]["image"])


def no_mask(root: Path) -> None:
    (root / "annotations" / "training" / "a.png").unlink()


def no_masks(root: Path) -> None:
    for path in (root / "annotations" / "training").iterdir():
        path.unlink()


def no_image(root: Path) -> None:
    (root / "images" / "training" / "a.jpg").unlink()


def no_images(root: Path) -> None:
    for path in (root / "images" / "training").iterdir():
        path.unlink()


def two_images_of_one_name(root: Path) -> None:
    Image.new("RGB", (6, 4)).save(root / "images" / "training" / "a.png")


def no_classes(root: Path) -> None:
    (root / "classes.json").unlink()


def other_split(root: Path) -> None:
    (root / "images" / "training").rename(root / "images" / "train")


def no_annotations(root: Path) -> None:
    (root / "annotations").rename(root / "masks")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (no_mask, "{root}/annotations/training/a.png: mask is missing; every image needs one"),
        (
            no_masks,
            "{root}/annotations/training/a.png: mask is missing (and 1 more); every image needs one",
        ),
        (no_image, "{root}/annotations/training/a.png: mask without an image in {root}/images/training"),
        (no_images, "{root}/images/training: no images in this split"),
        (
            two_images_of_one_name,
            "{root}/images/training/a.png: has the stem of a.jpg; rename one",
        ),
        (no_classes, "{root}/classes.json: cannot be read: No such file or directory"),
        (other_split, "{root}/images/training: no such folder; the splits here are train"),
        (no_annotations, "{root}/annotations/training: no such folder"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_line(
    root: Path, harm: Callable[[Path], None], message: str
) -> None:
    harm(root)
    with pytest.raises(DataError) as caught:
        ImageMaskFolder(root, "training")
    assert str(caught.value) == message.format(root=root)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        ImageMaskFolder(tmp_path / "nowhere")


def test_a_mask_of_another_size_is_named(root: Path) -> None:
    save_mask(root, [[0, 1], [1, 0]])
    with pytest.raises(DataError, match=r"a\.png: .* 2x2 pixels, .*a\.jpg has 6x4$"):
        ImageMaskFolder(root)[0]


def test_an_unknown_label_is_named_at_every_read(root: Path) -> None:
    ids = np.zeros((4, 6), dtype=int)
    ids[2, 5] = 3
    save_mask(root, ids.tolist())
    dataset = ImageMaskFolder(root)
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            dataset[0]
        assert str(caught.value) == (
            f"{root}/annotations/training/a.png: label 3 at row 2, column 5 is outside the classes 0-2 "
            "(ignore_index 255)"
        )


def test_a_mask_may_be_ignored_altogether(root: Path) -> None:
    save_mask(root, [[255] * 6] * 4)
    assert ImageMaskFolder(root)[0]["mask"].unique().tolist() == [255]
