"""Masks whose colours are classes, in every kind of data set."""

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
from PIL import Image

from ccsegformer.data.colors import read_class_file, read_color_mask
from ccsegformer.data.labels import Classes, read_classes, write_classes
from ccsegformer.data.objects import as_dataset
from ccsegformer.errors import DataError
from ccsegformer.sources import open_dataset

LISTING = {
    "names": ["road", "tree"],
    "ignore_index": 255,
    "colors": {"128 64 128": "road", "0 128 0": "tree", "0 200 0": 1, "0 0 0": "ignore"},
}
COLORS = np.array([(128, 64, 128), (0, 128, 0), (0, 200, 0), (0, 0, 0)], np.uint8)
PLACES = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.uint8)
LABELS = [[0, 1, 1, 255], [255, 1, 1, 0]]
IMAGE = np.zeros((2, 4, 3), np.uint8)
PALETTE_FILE = "# R G B name\n128 64 128\troad\n0,128,0,tree\n\n0 200 0 tree\n0 0 0 ignore\n"


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def write_listing(folder: Path, listing: dict[str, Any] = LISTING) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.json").write_text(json.dumps(listing))
    return folder / "classes.json"


def picture(kind: str, pixels: np.ndarray = COLORS[PLACES]) -> Image.Image:
    """Return colours (H, W, 3) as a Pillow image of a mode."""
    if kind != "P":
        return Image.fromarray(pixels).convert(kind)
    image = Image.fromarray(PLACES)
    image.putpalette(COLORS.flatten().tolist())
    return image


def write_folder(root: Path, mask: Image.Image, ending: str = "") -> None:
    for kind, image in (("images", Image.fromarray(IMAGE)), ("annotations", mask)):
        (root / kind / "training").mkdir(parents=True)
        image.save(root / kind / "training" / f"a{ending if image is mask else ''}.png")


def write_parquet(root: Path, mask: Image.Image) -> None:
    row = {}
    for column, image in (("image", Image.fromarray(IMAGE)), ("annotation", mask)):
        image.save(file := io.BytesIO(), "png")
        row[column] = [{"bytes": file.getvalue(), "path": f"{column}.png"}]
    (root / "data").mkdir(parents=True)
    pq.write_table(pa.table(row), root / "data" / "train-00000-of-00001.parquet")


def write_scene(root: Path, mask: Image.Image, shift: int = 0, **options: Any) -> None:
    (root / "training").mkdir(parents=True)
    values = np.asarray(mask)
    bands = values[None] if mask.mode == "P" else np.moveaxis(values, 2, 0)
    place = {"crs": "EPSG:32632", "height": 2, "width": 4, "dtype": "uint8"}
    for name, content, left in (("a", np.moveaxis(IMAGE, 2, 0), 0), ("a_mask", bands, shift)):
        transform = rasterio.Affine(1, 0, 500000 + left, 0, -1, 5000000)
        more = options if name == "a_mask" else {}
        kept = {"photometric": "rgb"} if len(content) >= 3 else {}
        kept |= {"alpha": "yes"} if len(content) == 4 else {}
        shape = {"count": len(content), "transform": transform}
        with rasterio.open(root / "training" / f"{name}.tif", "w", **shape, **place, **kept, **more) as out:
            out.write(content)
            if mask.mode == "P" and name == "a_mask":
                out.write_colormap(1, {i: (*map(int, color), 255) for i, color in enumerate(COLORS)})


WRITERS = {"folder": write_folder, "parquet": write_parquet, "scene": write_scene}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("kind", WRITERS)
def test_colours_become_labels_in_every_kind_of_data_set(tmp_path: Path, kind: str, mode: str) -> None:
    WRITERS[kind](tmp_path / "data", picture(mode))
    write_listing(tmp_path / "data")
    mask = open_dataset(tmp_path / "data", "training")[0]["mask"]
    assert mask.tolist() == LABELS
    assert mask.dtype == torch.uint8


@pytest.mark.parametrize("kind", WRITERS)
def test_a_palette_file_is_named_as_other_classes_are(tmp_path: Path, kind: str) -> None:
    WRITERS[kind](tmp_path / "data", picture("RGB"))
    (tmp_path / "label_colors.txt").write_text(PALETTE_FILE)
    data = open_dataset(f"{tmp_path / 'data'}?classes={tmp_path / 'label_colors.txt'}", "training")
    assert data[0]["mask"].tolist() == LABELS
    assert data.classes.names == ("road", "tree")
    assert data.classes.palette == ((128, 64, 128), (0, 128, 0))


@pytest.mark.parametrize("kind", [*WRITERS, "object"])
def test_a_colour_that_is_not_listed_is_named_with_its_place(tmp_path: Path, kind: str) -> None:
    pixels = COLORS[PLACES]
    pixels[1, 2] = (0, 190, 2)
    classes = read_classes(write_listing(tmp_path / "data"))
    with pytest.raises(DataError) as caught:
        if kind == "object":
            as_dataset([(IMAGE, pixels)], classes)
        else:
            WRITERS[kind](tmp_path / "data", picture("RGB", pixels))
            open_dataset(tmp_path / "data", "training")[0]
    expected = "the colour [0, 190, 2] at row 1, column 2 is not listed; the nearest is [0, 200, 0], 'tree'"
    assert expected in str(caught.value)
    named = {"folder": "a.png", "parquet": "column 'annotation'", "scene": "a_mask.tif", "object": "list[0]"}
    assert named[kind] in str(caught.value)


def test_objects_hold_pictures_arrays_and_tensors(tmp_path: Path) -> None:
    classes = read_classes(write_listing(tmp_path))
    pixels = COLORS[PLACES]
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for mask in (pixels, tensor, picture("RGB"), picture("P")):
        assert as_dataset([(IMAGE, mask)], classes)[0]["mask"].tolist() == LABELS
    for wrong in (PLACES, pixels.astype(np.int64), tensor[:2], pixels.transpose(2, 0, 1)):
        with pytest.raises(DataError, match=r"list\[0\]: mask of shape .* in colours it must be"):
            as_dataset([(IMAGE, wrong)], classes)
    with pytest.raises(DataError, match="masks in colours are RGB or palette images, not of mode I;16"):
        as_dataset([(IMAGE, Image.fromarray(PLACES.astype(np.uint16)))], classes)


def test_scenes_ignore_what_their_mask_does_not_cover(tmp_path: Path) -> None:
    write_scene(tmp_path / "shifted", picture("RGB"), shift=1)
    write_listing(tmp_path / "shifted")
    mask = open_dataset(tmp_path / "shifted", "training")[0]["mask"]
    assert mask.tolist() == [[255, 0, 1, 1], [255, 255, 1, 1]]
    no_black = {key: value for key, value in LISTING["colors"].items() if key != "0 0 0"}  # type: ignore[attr-defined]
    write_scene(tmp_path / "nodata", picture("RGB"), nodata=0)
    write_listing(tmp_path / "nodata", LISTING | {"colors": no_black})
    assert open_dataset(tmp_path / "nodata", "training")[0]["mask"].tolist() == LABELS
    write_scene(tmp_path / "black", picture("RGB"), nodata=0)  # black is declared nodata, but listed
    write_listing(tmp_path / "black", LISTING | {"colors": no_black | {"0 0 0": "road"}})
    assert open_dataset(tmp_path / "black", "training")[0]["mask"].tolist() == [[0, 1, 1, 0], [0, 1, 1, 0]]


def test_scenes_refuse_masks_without_exact_colours(tmp_path: Path) -> None:
    write_scene(tmp_path / "jpeg", picture("RGB"), compress="jpeg", tiled=True, blockxsize=16, blockysize=16)
    write_listing(tmp_path / "jpeg")
    with pytest.raises(DataError, match=r"a_mask\.tif: compressed as a JPEG"):
        open_dataset(tmp_path / "jpeg", "training")
    write_listing(tmp_path / "jpeg", {"names": ["a", "b"], "ignore_index": 255})
    with pytest.raises(DataError, match=r"a_mask\.tif: compressed as a JPEG"):
        open_dataset(tmp_path / "jpeg", "training")
    write_scene(tmp_path / "ids", Image.fromarray(np.stack([PLACES] * 2, axis=2)))
    write_listing(tmp_path / "ids")
    with pytest.raises(DataError, match=r"has 3 bands or a palette, of uint8, but this has 2"):
        open_dataset(tmp_path / "ids", "training")


def test_a_jpeg_and_grey_of_sixteen_bits_hold_no_colours(tmp_path: Path) -> None:
    classes = read_classes(write_listing(tmp_path))
    picture("RGB").save(tmp_path / "a.png", "jpeg")
    with pytest.raises(DataError, match=r"a\.png: a JPEG as a mask"):
        read_color_mask(classes, tmp_path / "a.png")
    Image.fromarray(PLACES.astype(np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png: masks in colours are RGB or palette images"):
        read_color_mask(classes, tmp_path / "b.png")


@pytest.mark.parametrize("ending", ["_color", "_gtFine_color", "_L", "_label"])
def test_masks_in_colours_have_the_endings_of_public_sets(tmp_path: Path, ending: str) -> None:
    write_folder(tmp_path, picture("RGB"), ending)
    if ending == "_gtFine_color":  # Cityscapes has both beside each other
        Image.fromarray(PLACES).save(tmp_path / "annotations/training/a_gtFine_labelIds.png")
    write_listing(tmp_path)
    assert open_dataset(tmp_path, "training")[0]["mask"].tolist() == LABELS


def test_colors_may_be_those_of_the_palette(tmp_path: Path) -> None:
    listing = {"names": ["a", "b"], "ignore_index": 255, "palette": [[1, 2, 3], [4, 5, 6]], "colors": True}
    classes = read_classes(write_listing(tmp_path, listing))
    assert classes.colors == (((1, 2, 3), 0), ((4, 5, 6), 1))
    wide = Classes(("a", "b"), colors=(((4, 5, 6), 1), ((1, 2, 3), 0)), ignore_index=300)
    mask = as_dataset([(IMAGE, np.full((2, 4, 3), (4, 5, 6), np.uint8))], wide)[0]["mask"]
    assert (mask == 1).all() and mask.dtype == torch.int32


def test_colors_are_written_and_read_back(tmp_path: Path) -> None:
    classes = read_classes(write_listing(tmp_path))
    assert classes.palette == ((128, 64, 128), (0, 128, 0))
    write_classes(classes, tmp_path / "again.json")  # a resumed run compares the two
    assert read_classes(tmp_path / "again.json") == classes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colors": True}, "'palette', which is missing"),
        ({"colors": {}}, "'colors' must be true or give the class of each colour"),
        ({"colors": [[0, 0, 0]]}, "'colors' must be true or give the class of each colour"),
        ({"colors": {"0 0": "road"}}, "not '0 0'"),
        ({"colors": {"0 0 -1": "road"}}, "not '0 0 -1'"),
        ({"colors": {"0 0 256": "road"}}, "three numbers between 0 and 255, not [0, 0, 256]"),
        ({"colors": {"0 0 0": "raod"}}, "'colors' gives 0 0 0 the class 'raod', which does not exist"),
        ({"colors": {"0 0 0": 2}}, "[0, 0, 0] becomes 2, but the classes are 0-1"),
        ({"colors": {"0 0 0": "road", "0 0  0": "tree"}}, "[0, 0, 0] is given twice, for 'road' and 'tree'"),
        ({"map": {"0": "road"}}, "leave out 'map' and 'reduce_labels'"),
        ({"palette": [[1, 1, 1], [1, 1, 1]], "colors": True}, "[1, 1, 1] is given twice, for 'road' and"),
    ],
)
def test_wrong_colors_are_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_listing(tmp_path, LISTING | change)
    with pytest.raises(DataError) as caught:
        read_classes(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0 road\n", "line 1 must be 'R G B NAME'"),
        ("0 0 0 road\n1 1 256 tree\n", "line 2 must be 'R G B NAME'"),
        ("road 0 0 0\n", "line 1 must be"),
        ("0 0 0 road\n0 0 0 tree\n", "line 2: the colour 0 0 0 is given twice"),
        ("# nothing\n", "there are no class names"),
        ("0 0 0 ignore\n", "there are no class names"),
    ],
)
def test_wrong_palette_files_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "label_colors.txt"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_class_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        read_class_file(tmp_path / "missing.txt")


def test_colour_masks_without_colors_say_how_to_read_them(tmp_path: Path) -> None:
    write_folder(tmp_path, picture("RGB"))
    write_listing(tmp_path, {"names": ["a", "b"], "ignore_index": 255})
    with pytest.raises(DataError, match=r"a\.png: .* mode RGB; .* list the colours in classes\.json"):
        open_dataset(tmp_path, "training")[0]


def test_a_mask_with_the_ending_of_colours_says_how_to_read_it(tmp_path: Path) -> None:
    write_folder(tmp_path, picture("RGB"), "_L")
    write_listing(tmp_path, {"names": ["a", "b"], "ignore_index": 255})
    with pytest.raises(DataError, match=r"mask is missing; .* a_L\.png is there: if its colours are classes"):
        open_dataset(tmp_path, "training")
