import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from ccsegformer.data.folder import ImageMaskFolder
from ccsegformer.data.labels import colorize
from ccsegformer.data.scene_parse_150.labels import SCENE_PARSE_150, labels_from_raw_ids, read_raw_mask
from ccsegformer.errors import DataError

SAMPLE = os.environ.get("CCSEGFORMER_SCENE_PARSE_SAMPLE", "")
sampled = pytest.mark.skipif(not SAMPLE, reason="CCSEGFORMER_SCENE_PARSE_SAMPLE names no official folder")


def save(path: Path, ids: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(ids)
    (image.convert(mode) if mode else image).save(path)
    return path


def test_the_classes_are_a_hundred_and_fifty() -> None:
    assert len(SCENE_PARSE_150) == 150 and SCENE_PARSE_150.ignore_index == 255
    assert SCENE_PARSE_150.names[0] == "wall" and SCENE_PARSE_150.names[149] == "flag"
    assert (0, 0, 0) not in SCENE_PARSE_150.palette, "black is for ignored pixels"


def test_one_colour_is_shared_by_two_classes() -> None:
    shared = [color for color, count in Counter(SCENE_PARSE_150.palette).items() if count > 1]
    assert len(set(SCENE_PARSE_150.palette)) == 149
    names = zip(SCENE_PARSE_150.names, SCENE_PARSE_150.palette, strict=True)
    assert [name for name, color in names if color in shared] == ["road", "skyscraper"]


def test_raw_ids_become_labels() -> None:
    raw = torch.arange(151, dtype=torch.uint8).reshape(1, 151)
    labels = labels_from_raw_ids(raw, "a.png")
    assert isinstance(labels, tv_tensors.Mask) and labels.dtype == torch.uint8
    assert labels.tolist() == [[255, *range(150)]]
    assert raw[0, 0] == 0, "the given mask is left as it is"


@pytest.mark.parametrize(
    ("ids", "mode", "message"),
    [
        (
            [[0, 151]],
            None,
            r"id 151 at row 0, column 1 is outside .* 0-150; perhaps it is from another .*, such as full",
        ),
        (
            [[7], [255]],
            None,
            r"id 255 at row 1, column 0 is .*; perhaps these are labels \(0-149, 255 ",
        ),
        ([[255, 200]], None, "id 255 at row 0, column 0 is .*; perhaps it is from another"),
        ([[3]], "RGB", r"mode RGB; .* full ADE20K coloured ones \(\*_seg\.png\)$"),
        ([[3]], "I;16", "a 16-bit annotation.*perhaps it is from full ADE20K"),
    ],
)
def test_masks_of_other_sets_are_named(
    tmp_path: Path, ids: list[list[int]], mode: str | None, message: str
) -> None:
    path = save(tmp_path / "a.png", np.array(ids, dtype=np.uint16 if mode == "I;16" else np.uint8), mode)
    with pytest.raises(DataError, match=message) as caught:
        read_raw_mask(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_the_official_layout_is_recognised(official: Path) -> None:
    for split, count in (("training", 3), ("validation", 2)):
        dataset = ImageMaskFolder(official, split)
        assert dataset.classes == SCENE_PARSE_150
        assert len(dataset) == count
        path = official / "annotations" / split / f"{dataset.names[1]}.png"
        raw = np.asarray(Image.open(path)).astype(int)
        assert np.array_equal(dataset[1]["mask"], np.where(raw == 0, 255, raw - 1))


def test_one_split_is_enough(official: Path) -> None:
    (official / "annotations" / "training").rename(official / "elsewhere")
    assert len(ImageMaskFolder(official, "validation")) == 2
    with pytest.raises(DataError, match="the splits here are validation"):
        ImageMaskFolder(official, "training")


def test_classes_of_its_own_make_a_folder_an_ordinary_one(official: Path) -> None:
    names = ", ".join(f'"c{index}"' for index in range(151))
    (official / "classes.json").write_text(f'{{"names": [{names}], "ignore_index": 255}}')
    dataset = ImageMaskFolder(official, "validation")
    assert len(dataset.classes) == 151
    assert dataset[0]["mask"][0, :2].tolist() == [0, 150]


def test_an_image_without_annotation_is_named(official: Path) -> None:
    (official / "annotations/validation/ADE_val_00000002.png").unlink()
    with pytest.raises(DataError, match=r"ADE_val_00000002\.png: mask is missing"):
        ImageMaskFolder(official, "validation")


def test_folders_beside_the_right_one_are_told(official: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"is in {official}; use that folder"):
        ImageMaskFolder(official.parent)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "index_ade20k.pkl").write_bytes(b"")
    with pytest.raises(DataError, match="full: full ADE20K is not supported"):
        ImageMaskFolder(tmp_path / "full")


@sampled
def test_names_are_those_of_the_official_list() -> None:
    lines = (Path(SAMPLE) / "objectInfo150.txt").read_text().splitlines()[1:]
    assert [line.split("\t")[4].split(",")[0].strip() for line in lines] == list(SCENE_PARSE_150.names)


@sampled
def test_official_images_are_read() -> None:
    dataset = ImageMaskFolder(SAMPLE, "validation")
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample["image"].shape[1:] == sample["mask"].shape
        assert set(sample["mask"].unique().tolist()) <= {*range(150), 255}
        colorize(sample["mask"].numpy(), dataset.classes)
