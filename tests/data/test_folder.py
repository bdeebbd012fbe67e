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


def other_split(root: Path) -> None:
    (root / "images" / "training").rename(root / "images" / "one")


def no_annotations(root: Path) -> None:
    (root / "annotations").rename(root / "truth")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            no_mask,
            "{root}/annotations/training/a.png: mask is missing; every image needs one; it holds 1 .png",
        ),
        (
            no_masks,
            "{root}/annotations/training/a.png: mask is missing (and 1 more); every image needs one; "
            "it is empty",
        ),
        (no_image, "{root}/annotations/training/a.png: mask without an image in {root}/images/training"),
        (no_images, "{root}/images/training: no images in this split; it is empty"),
        (
            two_images_of_one_name,
            "{root}/images/training/a.png: has the stem of a.jpg; rename one",
        ),
        (other_split, "{root}/images/training: no such folder; the splits here are one"),
        (no_annotations, "{root}/annotations/training: no such folder; the folders here are images, truth"),
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


def rename(root: Path, kind: str, change: Callable[[str], str]) -> None:
    for path in list((root / kind / "training").iterdir()):
        target = path.parent / change(path.name)
        target.parent.mkdir(exist_ok=True)
        path.rename(target)


def test_without_classes_json_the_ids_are_counted_and_one_is_proposed(root: Path) -> None:
    (root / "classes.json").unlink()
    with pytest.raises(DataError) as caught:
        ImageMaskFolder(root)
    message = str(caught.value)
    assert message.startswith(f"{root}/classes.json: no such file; the masks hold the ids 0 (")
    assert "\n" not in message and "255 (" in message
    proposed = message[message.index("{") :]
    assert json.loads(proposed) == {"names": ["class 0", "class 1", "class 2"], "ignore_index": 255}
    (root / "classes.json").write_text(proposed)
    assert len(ImageMaskFolder(root)[0]) == 3


def test_classes_json_may_have_a_byte_order_mark(root: Path) -> None:
    listing = root / "classes.json"
    listing.write_bytes(b"\xef\xbb\xbf" + listing.read_bytes())
    assert ImageMaskFolder(root).classes.names == ("x", "y", "z")


@pytest.mark.parametrize(
    ("split", "name"), [("training", "train"), ("validation", "val"), ("validation", "valid")]
)
def test_splits_may_have_other_names(root: Path, split: str, name: str) -> None:
    for kind in ("images", "annotations"):
        (root / kind / "training").rename(root / kind / name)
    assert len(ImageMaskFolder(root, split)) == 2


@pytest.mark.parametrize("ending", ["_mask", "_label", "_labels", "_labelIds", "_labelTrainIds"])
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_masks_may_have_endings_and_other_suffixes(root: Path, ending: str, suffix: str) -> None:
    before = [sample["mask"] for sample in ImageMaskFolder(root)]
    for path in list((root / "annotations" / "training").iterdir()):
        with Image.open(path) as mask:
            mask.save(path.with_name(f"{path.name.removesuffix('.png')}{ending}{suffix}"))
        path.unlink()
    after = ImageMaskFolder(root)
    assert after.names == ("a", "b.day1")
    assert all(torch.equal(one, after[index]["mask"]) for index, one in enumerate(before))


def test_cityscapes_as_it_is_unpacked(root: Path) -> None:
    rename(root, "images", lambda name: f"ulm/{name.removesuffix('.jpg')}_leftImg8bit.jpg")
    rename(root, "annotations", lambda name: f"ulm/{name.removesuffix('.png')}_gtFine_labelIds.png")
    (root / "images" / "training").rename(root / "images" / "train")
    (root / "images").rename(root / "leftImg8bit")
    (root / "annotations" / "training").rename(root / "annotations" / "train")
    (root / "annotations").rename(root / "gtFine")
    masks = root / "gtFine" / "train" / "ulm"
    for name in ("a_gtFine_color.png", "a_gtFine_instanceIds.png"):
        Image.new("RGB", (6, 4)).save(masks / name)
    dataset = ImageMaskFolder(root)
    assert dataset.names == ("ulm/a", "ulm/b.day1")
    assert dataset[1]["mask"].shape == (4, 6)
    Image.new("L", (6, 4)).save(masks / "a_gtFine_labelTrainIds.png")
    with pytest.raises(DataError, match="several kinds, NAME_gtFine_labelIds and NAME_gtFine_labelTrainIds"):
        ImageMaskFolder(root)


def test_names_in_either_unicode_form(root: Path) -> None:
    rename(root, "images", lambda name: "Zu\u0308rich" + name)
    rename(root, "annotations", lambda name: "Z\u00fcrich" + name)
    assert ImageMaskFolder(root).names == ("Z\u00fcricha", "Z\u00fcrichb.day1")


@pytest.mark.parametrize(
    ("name", "message"), [("a.jpg", "is a JPEG, which changes"), ("a-truth.png", "a-truth.png is there")]
)
def test_what_lies_near_a_missing_mask_is_named(root: Path, name: str, message: str) -> None:
    no_mask(root)
    Image.new("L", (6, 4)).save(root / "annotations" / "training" / name)
    with pytest.raises(DataError, match=message):
        ImageMaskFolder(root)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_a_jpeg_under_another_name_is_no_mask(root: Path, kind: str) -> None:
    options = {"JPEG": {}, "TIFF": {"compression": "jpeg"}}[kind]
    Image.new("L", (6, 4)).save(root / "annotations" / "training" / "a.png", format=kind, **options)
    with pytest.raises(DataError, match=r"a\.png: a JPEG as a mask"):
        ImageMaskFolder(root)[0]


@pytest.mark.parametrize(
    ("colors", "wrong"),
    [([[1, 2, 3], [4, 5, 6]], False), ([[4, 5, 6], [1, 2, 3]], True), ([[7, 7, 8], [1, 2, 3]], False)],
)
def test_a_palette_that_contradicts_classes_json(root: Path, colors: list[list[int]], wrong: bool) -> None:
    content = {"names": ["x", "y", "z"], "ignore_index": 255, "palette": [[1, 2, 3], [4, 5, 6], [9, 9, 8]]}
    (root / "classes.json").write_text(json.dumps(content))
    mask = Image.fromarray(np.array([[0, 1] * 3] * 4, dtype=np.uint8)).convert("P")
    mask.putpalette([level for color in colors for level in color])
    mask.save(root / "annotations" / "training" / "a.png")
    if not wrong:
        assert ImageMaskFolder(root)[0]["mask"][0].tolist() == [0, 1] * 3
        return
    with pytest.raises(DataError, match=r"a\.png: id 0 has the colour \[4, 5, 6\], .* of class 1, 'y'"):
        ImageMaskFolder(root)[0]


def turn(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=exif)


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
@pytest.mark.parametrize("kind", ["images", "annotations"])
def test_a_turn_of_image_or_mask_alone_is_refused(root: Path, orientation: int, kind: str) -> None:
    turn(next((root / kind / "training").glob("a.*")), orientation)
    with pytest.raises(DataError, match=rf"a\.png: has the EXIF orientation .*{orientation}"):
        ImageMaskFolder(root)[0]


@pytest.mark.parametrize("orientation", [3, 6])
def test_equal_turns_are_applied_to_both(root: Path, orientation: int) -> None:
    before = ImageMaskFolder(root)[0]["mask"]
    for kind in ("images", "annotations"):
        turn(next((root / kind / "training").glob("a.*")), orientation)
    quarters = {3: 2, 6: -1}[orientation]
    assert torch.equal(ImageMaskFolder(root)[0]["mask"], torch.rot90(before, quarters, (0, 1)))


def test_a_mask_on_the_upright_grid_of_a_turned_image(root: Path) -> None:
    turn(root / "images" / "training" / "a.jpg", 6)
    save_mask(root, [[0, 1, 2, 0]] * 6)
    assert ImageMaskFolder(root)[0]["mask"].shape == (6, 4)
