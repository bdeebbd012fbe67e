"""Adapters for the data set objects of other libraries."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ccsegformer.data.folder import ImageMaskFolder
from ccsegformer.data.images import read_image, read_mask
from ccsegformer.data.labels import Classes
from ccsegformer.data.objects import as_dataset, describe_object
from ccsegformer.data.procedural.scenes import ProceduralScenes
from ccsegformer.errors import DataError
from ccsegformer.raster.random_windows import RandomWindows
from ccsegformer.sources import resolve_dataset

NAMES = ["water", "land", "road"]
RGB = torch.arange(3 * 4 * 6, dtype=torch.uint8).reshape(3, 4, 6)
IDS = torch.tensor([[0, 1, 2, 255, 0, 1]] * 4, dtype=torch.uint8)


class Items(Dataset[Any]):
    """A data set of the given items."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def read(image: Any, mask: Any = IDS) -> Any:
    return as_dataset(Items((image, mask)), NAMES)[0]


def refusal(*items: Any, classes: Any = NAMES, **keys: str) -> str:
    with pytest.raises(DataError) as caught:
        dataset = as_dataset(Items(*items), classes, **keys)
        for index in range(len(dataset)):
            dataset[index]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pairs_and_mappings_are_samples() -> None:
    items = [(RGB, IDS), [RGB, IDS], {"image": RGB, "mask": IDS}, {"image": RGB, "label": IDS}]
    dataset = as_dataset(Items(*items), NAMES)
    assert dataset.classes == Classes(tuple(NAMES))
    assert list(dataset.names) == [f"Items-{index:06}" for index in range(4)]
    for index in range(4):
        sample = dataset[index]
        assert torch.equal(sample["image"], RGB) and sample["image"].dtype == torch.uint8
        assert torch.equal(sample["mask"], IDS) and sample["mask"].dtype == torch.uint8
        assert sample["name"] == dataset.names[index]
    assert len(list(dataset)) == 4
    assert describe_object(dataset) == "Items object, 4 samples"
    assert as_dataset(dataset) is dataset


def test_four_float_bands_in_torchgeo_s_form() -> None:
    bands = torch.rand(4, 5, 7, dtype=torch.float64)
    for mask in (
        torch.ones(5, 7),
        torch.ones(1, 5, 7, dtype=torch.int64),
        torch.ones(5, 7, dtype=torch.bool),
    ):
        sample = as_dataset(Items({"image": bands, "mask": mask, "crs": None}), NAMES)[0]
        assert torch.equal(sample["image"], bands.float())
        assert torch.equal(sample["mask"], torch.ones(5, 7, dtype=torch.uint8))
        assert sample["mask"].dtype == torch.uint8


@pytest.mark.parametrize("kind", ["uint16", "int16", "float16", "float32", ">u2"])
def test_arrays_are_channels_last_and_tensors_channels_first(kind: str) -> None:
    array = RGB.permute(1, 2, 0).numpy().astype(kind)
    for image in (
        array,
        array[::-1][::-1],
        torch.from_numpy(array.astype(np.dtype(kind).newbyteorder("="))).permute(2, 0, 1),
    ):
        sample = read(image)
        assert sample["image"].dtype == torch.float32
        assert torch.equal(sample["image"], RGB.float())
    grey = read(array[..., 0])
    assert torch.equal(grey["image"], RGB[:1].float())


def test_read_only_arrays_make_no_warning() -> None:
    image, mask = RGB.permute(1, 2, 0).numpy().copy(), IDS.numpy().copy()
    image.flags.writeable = mask.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(read(image, mask)["image"], RGB)


def test_pillow_pairs_are_read_as_their_files_are(tmp_path: Path) -> None:
    image, mask = Image.fromarray(RGB.permute(1, 2, 0).numpy()), Image.fromarray(IDS.numpy())
    palette = mask.convert("P")
    palette.putdata(IDS.flatten().tolist())
    wide = Image.fromarray(IDS.numpy().astype(np.uint16) * 256)
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=turned)
    sideways = Image.open(tmp_path / "turned.png")
    for each in (image, image.convert("L"), image.convert("CMYK"), wide):
        path = tmp_path / f"{each.mode.replace(';', '')}.tif"
        each.save(path)
        assert torch.equal(read(each)["image"], read_image(path))
    for each in (mask, palette):
        each.save(tmp_path / "mask.png")
        assert torch.equal(read(image, each)["mask"], read_mask(tmp_path / "mask.png"))
        assert torch.equal(read(image, each)["mask"], IDS)
    assert torch.equal(read(sideways, IDS.T)["image"], read_image(tmp_path / "turned.png"))
    assert sideways.getexif()[0x0112] == 6, "the caller's image was changed"


def test_a_damaged_lazy_image_is_one_line(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:500])
    with Image.open(tmp_path / "a.png") as image:
        assert refusal((image, IDS)).startswith("Items[0]: damaged image: ")


def test_a_hugging_face_set() -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)) for _ in range(3)]
    masks = [Image.fromarray(rng.integers(0, 3, (8, 9), dtype=np.uint8)) for _ in range(3)]
    features = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": images, "annotation": masks}, features=features)
    renamed = rows.rename_columns({"image": "pixels", "annotation": "seg"})
    for dataset in (as_dataset(rows, NAMES), as_dataset(renamed, NAMES, image="pixels", mask="seg")):
        assert len(dataset) == 3 and dataset.names[2] == "Dataset-000002"
        for index in range(3):
            assert torch.equal(
                dataset[index]["image"].permute(1, 2, 0), torch.from_numpy(np.array(images[index]))
            )
            assert torch.equal(dataset[index]["mask"], torch.from_numpy(np.array(masks[index])))
    with pytest.raises(
        DataError, match=r"^Dataset\[0\]: no 'image' among pixels, seg; name the keys with as_"
    ):
        as_dataset(renamed, NAMES)
    with pytest.raises(DataError, match=r"^DatasetDict: pass one of its splits: train, test$"):
        as_dataset(datasets.DatasetDict({"train": rows, "test": rows}), NAMES)
    with pytest.raises(DataError, match=r"^IterableDataset: not a map-style data set"):
        as_dataset(rows.to_iterable_dataset(), NAMES)


def test_classes_are_given_or_the_object_s() -> None:
    items = Items((RGB, IDS))
    assert refusal((RGB, IDS), classes=None) == (
        "Items: has no class names; pass classes=, a list of names or a Classes"
    )
    for found in (NAMES, tuple(NAMES), Classes(tuple(NAMES))):
        items.classes = found
        assert as_dataset(items).classes == Classes(tuple(NAMES))
    other = Classes(("a", "b", "c", "d"), ignore_index=255)
    assert as_dataset(items, other).classes == other
    items.classes = [("water", 0), ("land", 1)]  # as torchvision's Cityscapes
    with pytest.raises(DataError, match="has no class names"):
        as_dataset(items)
    items.classes = ["a", "a"]
    with pytest.raises(DataError, match=r"^Items\.classes: class name 'a' occurs more than once$"):
        as_dataset(items)
    assert "classes: must be a list of names or a Classes, not 'water'" in refusal(
        (RGB, IDS), classes="water"
    )
    many = as_dataset(Items((RGB, IDS)), [str(label) for label in range(300)])
    assert many.classes.ignore_index == 65535 and many[0]["mask"].max() == 255


def test_masks_of_many_classes_are_wide() -> None:
    classes = Classes(tuple(str(label) for label in range(300)), ignore_index=65535)
    ids = torch.tensor([[299, 65535, 0, 0, 0, 0]] * 4)
    sample = as_dataset(Items((RGB, ids)), classes)[0]
    assert sample["mask"].dtype == torch.int32 and torch.equal(sample["mask"], ids.int())


def test_names_are_the_object_s() -> None:
    items = Items((RGB, IDS), (RGB, IDS))
    items.names = ["b", "a"]
    assert list(as_dataset(items, NAMES).names) == ["b", "a"]
    items.names = ["only one"]
    assert list(as_dataset(items, NAMES).names) == ["Items-000000", "Items-000001"]


@pytest.mark.parametrize(
    ("value", "shown"), [(31, "31"), (-1, "-1"), (2**32, "4294967296"), (3.0, "3"), (256, "256")]
)
def test_wrong_labels_name_object_index_and_place(value: float, shown: str) -> None:
    wrong = IDS.double()
    wrong[1, 2] = value
    ids = wrong if isinstance(value, float) else wrong.long()
    assert refusal((RGB, IDS), (RGB, ids)) == (
        f"Items[1]: label {shown} at row 1, column 2 is outside the classes 0-2 (ignore_index 255)"
    )


def test_a_file_s_name_is_in_the_message() -> None:
    wrong = {"image": RGB, "mask": torch.full((4, 6), 9), "filename": "a.tif"}
    assert refusal({"image": RGB, "mask": IDS}, wrong).startswith(
        "Items[1] (a.tif): label 9 at row 0, column 0 "
    )


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (RGB, IDS[:3], "the mask has 6x3 pixels, but its image has 6x4"),
        (
            RGB.numpy(),
            IDS,
            "image of shape (3, 4, 6) for a mask of (4, 6); an array must be (H, W, C) or (H, W)",
        ),
        (
            RGB.permute(1, 2, 0),
            IDS,
            "image of shape (4, 6, 3) for a mask of (4, 6); a tensor must be (C, H, W)",
        ),
        (RGB[0], IDS, "image of shape (4, 6) for a mask of (4, 6); a tensor must be (C, H, W)"),
        (RGB, RGB, "mask of shape (3, 4, 6); it must be (H, W) or (1, H, W)"),
        (RGB.long(), IDS, "image of int64; use uint8, uint16, int16 or floats"),
        (RGB / 0, IDS, "image has NaN or infinite values"),
        (RGB, IDS * 0.5, "mask holds values that are not whole numbers"),
        (RGB, IDS * torch.nan, "mask holds values that are not whole numbers"),
        (RGB, np.full((4, 6), "a"), "mask of str32; use whole numbers"),
        ("a.jpg", IDS, "image must be a Pillow image, tensor or array, not str"),
        (RGB, 7, "mask must be a Pillow image, tensor or array, not int"),
        (
            RGB,
            Image.new("RGB", (6, 4)),
            "a mask holds one class id per pixel, but this image has mode RGB",
        ),
        (Image.new("F", (6, 4)), IDS, "an image of floating-point numbers"),
    ],
)
def test_what_is_no_sample_is_one_line(image: Any, mask: Any, message: str) -> None:
    assert refusal((image, mask)).startswith(f"Items[0]: {message}")


def test_all_images_have_the_bands_of_the_first() -> None:
    four = torch.zeros(4, 4, 6, dtype=torch.uint8)
    assert refusal((RGB, IDS), (four, IDS)) == "Items[1]: 4 bands of uint8, but sample 0 has 3 bands of uint8"
    assert refusal((RGB, IDS), (RGB.float(), IDS)).startswith("Items[1]: 3 bands of float32")


def test_objects_that_are_no_data_set() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([])

        def __len__(self) -> int:
            return 0

    message = "not a map-style data set, which has a length and is indexed by number"
    for data, name in (
        (Stream(), "Stream"),
        (iter([]), "list_iterator"),
        (DataLoader(Items(1)), "DataLoader"),
    ):
        with pytest.raises(DataError, match=f"^{name}: {message}$"):
            as_dataset(data, NAMES)
    with pytest.raises(DataError, match=r"^list: has no samples$"):
        as_dataset([], NAMES)
    assert refusal(RGB) == "Items[0]: an item must be an (image, mask) pair or a mapping, not Tensor"


def test_errors_of_the_object_name_the_sample() -> None:
    class Broken(Items):
        def __getitem__(self, index: int) -> Any:
            if index:
                raise FileNotFoundError("no a.tif\nanywhere")
            return super().__getitem__(index)

    dataset = as_dataset(Broken((RGB, IDS), None), NAMES)
    with pytest.raises(DataError, match=r"^Broken\[1\]: FileNotFoundError: no a\.tif anywhere$") as caught:
        dataset[1]
    assert isinstance(caught.value.__cause__, FileNotFoundError)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_worker_processes_and_pickling_change_nothing() -> None:
    dataset = as_dataset(Items((RGB, IDS), (RGB.flip(0), IDS)), NAMES)
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=None, num_workers=2)  # type: ignore[arg-type]
    for index, sample in enumerate(loader):
        assert torch.equal(sample["image"], dataset[index]["image"])
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1]["image"], RGB.flip(0))


def test_own_data_sets_are_left_as_they_are(official: Path) -> None:
    scenes, folder = ProceduralScenes("training", count=1, size=128), ImageMaskFolder(official, "validation")
    assert resolve_dataset(scenes, "x") is scenes and resolve_dataset(folder, "x") is folder
    assert len(resolve_dataset(str(official), "validation")) == len(folder)
    windows = RandomWindows.__new__(RandomWindows)
    windows.classes = folder.classes
    assert as_dataset(windows) is windows
    for data in (scenes, official):
        with pytest.raises(DataError, match=r"^classes= is for other data set objects; a name takes"):
            resolve_dataset(data, "validation", NAMES)


def test_a_default_is_for_objects_without_classes() -> None:
    items, default = Items((RGB, IDS)), Classes(("a", "b", "c"))
    assert resolve_dataset(items, "x", default=default).classes == default
    assert resolve_dataset(items, "x", NAMES, default=default).classes == Classes(tuple(NAMES))
    items.classes = NAMES
    assert resolve_dataset(items, "x", default=default).classes == Classes(tuple(NAMES))
