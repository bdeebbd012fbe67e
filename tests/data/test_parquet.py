"""Parquet data sets on disk; for those on the hub, `datasets` only looks elsewhere."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ccsegformer.data.folder import ImageMaskFolder
from ccsegformer.data.parquet import ParquetImages
from ccsegformer.data.scene_parse_150.labels import SCENE_PARSE_150
from ccsegformer.errors import DataError
from ccsegformer.sources import open_dataset, with_options

# Newer Pythons warn about forks in processes with threads, which PyTorch always has.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
RAW = "classes=scene_parse_150"


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def write(path: Path, official: Path, split: str, image: str = "image", mask: str = "annotation") -> None:
    """Write the rows of a split in the form of `datasets.Image`, with an unused column."""
    rows: dict[str, list[Any]] = {image: [], mask: [], "scene": []}
    for file in sorted((official / "images" / split).iterdir()):
        annotation = official / "annotations" / split / f"{file.stem}.png"
        rows[image].append({"bytes": file.read_bytes(), "path": file.name})
        rows[mask].append({"bytes": annotation.read_bytes(), "path": annotation.name})
        rows["scene"].append(7)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows), path)


@pytest.fixture
def folder(official: Path, tmp_path: Path) -> Path:
    """The tiny SceneParse150 in the hub's layout, which calls the training split train."""
    write(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", official, "training")
    write(tmp_path / "set" / "data" / "validation-00000-of-00001.parquet", official, "validation")
    return tmp_path / "set"


def test_samples_are_those_of_the_folder(folder: Path, official: Path) -> None:
    for split in ("training", "validation"):
        expected = ImageMaskFolder(official, split)
        dataset = open_dataset(f"{folder}?{RAW}", split)
        assert isinstance(dataset, ParquetImages)
        assert dataset.classes == SCENE_PARSE_150
        assert len(dataset) == len(expected)
        assert list(dataset.names) == [f"{split}-{index:06}" for index in range(len(expected))]
        for index in reversed(range(len(expected))):
            sample = dataset[index]
            assert sample["name"] == dataset.names[index]
            assert torch.equal(sample["image"], expected[index]["image"])
            assert torch.equal(sample["mask"], expected[index]["mask"])


def test_shards_and_splits_named_as_ours(official: Path, tmp_path: Path) -> None:
    for index in range(2):
        write(tmp_path / "set" / "data" / f"training-0000{index}-of-00002.parquet", official, "training")
    dataset = open_dataset(f"{tmp_path / 'set'}?{RAW}", "training")
    assert len(dataset) == 6
    assert torch.equal(dataset[1]["image"], dataset[4]["image"])


def test_plain_bytes_are_images_too(official: Path, tmp_path: Path) -> None:
    write(tmp_path / "structs.parquet", official, "validation")
    rows = pq.read_table(tmp_path / "structs.parquet").to_pydict()
    plain = {name: [cell["bytes"] for cell in rows[name]] for name in ("image", "annotation")}
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table(plain), tmp_path / "set" / "validation.parquet")
    dataset = open_dataset(f"{tmp_path / 'set'}?{RAW}", "validation")
    assert torch.equal(dataset[1]["mask"], ImageMaskFolder(official, "validation")[1]["mask"])


@forks
def test_worker_processes_and_pickling_change_nothing(folder: Path) -> None:
    dataset = open_dataset(f"{folder}?{RAW}", "training")
    alone = [dataset[index]["image"] for index in range(3)]
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=None, num_workers=2)  # type: ignore[arg-type]
    assert all(torch.equal(a, b["image"]) for a, b in zip(alone, loader, strict=True))
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[2]["image"], alone[2])


def test_columns_have_any_name(official: Path, tmp_path: Path) -> None:
    write(tmp_path / "set" / "validation.parquet", official, "validation", "the pixels", "label&id")
    data = with_options(str(tmp_path / "set"), image="the pixels", mask="label&id", classes="scene_parse_150")
    assert data == f"{tmp_path / 'set'}?image=the%20pixels&mask=label%26id&classes=scene_parse_150"
    assert len(open_dataset(data, "validation")) == 2
    assert with_options(data) == data
    other = with_options(data, mask="scene")
    with pytest.raises(DataError, match=r"set: validation-000000, column 'scene': not an image file$"):
        open_dataset(other, "validation")[0]


def test_classes_are_the_folders_or_a_files(folder: Path, tmp_path: Path, own_cache: Path) -> None:
    with pytest.raises(DataError, match=r"set/classes\.json: cannot be read"):
        open_dataset(folder, "validation")
    names = ", ".join(f'"c{index}"' for index in range(151))
    (tmp_path / "mine.json").write_text(f'{{"names": [{names}], "ignore_index": 255}}')
    given = open_dataset(f"{folder}?classes={tmp_path / 'mine.json'}", "validation")
    (folder / "classes.json").write_text((tmp_path / "mine.json").read_text())
    found = open_dataset(folder, "validation")
    assert given.classes == found.classes
    assert given[0]["mask"][0, :2].tolist() == found[0]["mask"][0, :2].tolist() == [0, 150]
    (folder / "classes.json").rename(folder / "objectInfo150.txt")
    assert open_dataset(folder, "validation").classes == SCENE_PARSE_150


def damage(folder: Path) -> None:
    path = folder / "data" / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def other_columns(folder: Path) -> None:
    for path in (folder / "data").iterdir():
        pq.write_table(pq.read_table(path).rename_columns(["image", "label", "scene"]), path)


def no_training(folder: Path) -> None:
    (folder / "data" / "train-00000-of-00001.parquet").unlink()


def script(folder: Path) -> None:
    (folder / f"{folder.name}.py").write_text("raise SystemExit('was run')")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage, "{folder}: Parquet magic bytes not found in footer"),
        (
            other_columns,
            "{folder}: no column 'annotation'; choose another of image, label, scene with --mask",
        ),
        (no_training, "{folder}: no split 'training'; the splits here are validation"),
        (
            script,
            "{folder}: is a loading script, .* fetch the official",
        ),
    ],
)
def test_a_set_that_does_not_fit_is_one_line(
    folder: Path, harm: Callable[[Path], None], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    harm(folder)
    with pytest.raises(DataError, match=message.format(folder=folder)) as caught:
        open_dataset(f"{folder}?{RAW}", "training")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.parametrize(
    ("column", "content", "message"),
    [
        ("image", None, "training-000000, column 'image': not an image file"),
        ("image", b"no image", "training-000000, column 'image': not an image that can be read"),
        ("annotation", b"", "training-000000, column 'annotation': not an image that can be read"),
    ],
)
def test_a_cell_that_is_no_image_is_named(
    folder: Path, column: str, content: bytes | None, message: str
) -> None:
    path = folder / "data" / "train-00000-of-00001.parquet"
    rows = pq.read_table(path).to_pydict()
    rows[column][0]["bytes"] = content
    pq.write_table(pa.table(rows), path)
    dataset = open_dataset(f"{folder}?{RAW}", "training")
    with pytest.raises(DataError, match=message) as caught:
        dataset[0]
    assert str(caught.value).startswith(f"{folder}: ")
    assert dataset[1]["image"].shape == (3, 40, 48)


def test_masks_of_another_range_or_size_are_named(folder: Path) -> None:
    path = folder / "data" / "train-00000-of-00001.parquet"
    rows = pq.read_table(path).to_pydict()
    rows["annotation"] = rows["image"]
    pq.write_table(pa.table(rows), path)
    with pytest.raises(DataError, match=r"column 'annotation': .* mode RGB; .*full ADE20K"):
        open_dataset(f"{folder}?{RAW}", "training")[0]
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((5, 6), dtype=np.uint8)).save(buffer, format="PNG")
    rows["annotation"] = [{"bytes": buffer.getvalue(), "path": "a.png"}] * 3
    pq.write_table(pa.table(rows), path)
    with pytest.raises(DataError, match=r"6x5 pixels, .*column 'image' has 48x40$"):
        open_dataset(f"{folder}?{RAW}", "training")[0]


def test_hub_names_are_passed_on_with_revision_and_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    load = datasets.load_dataset_builder

    def from_the_hub(name: str, revision: str | None, data_dir: str | None) -> Any:
        asked.append((name, revision, data_dir))
        return load(str(folder))

    monkeypatch.setattr(datasets, "load_dataset_builder", from_the_hub)
    for data in ("org/name", "org/name@v1", "org/name/sub/dir", "org/name@refs/convert/parquet/sub"):
        assert len(open_dataset(f"hf://datasets/{data}?{RAW}", "training")) == 3
    assert asked == [
        ("org/name", None, None),
        ("org/name", "v1", None),
        ("org/name", None, "sub/dir"),
        ("org/name", "refs/convert/parquet", "sub"),
    ]
    with pytest.raises(DataError, match="unknown classes; pass --classes"):
        open_dataset("hf://datasets/org/name", "training")
    with pytest.raises(DataError, match="hf://datasets/name: must be hf://datasets/ORG/NAME"):
        open_dataset("hf://datasets/name", "training")


def test_options_are_for_parquet_files_only(official: Path, tmp_path: Path) -> None:
    for data in (official, "procedural", "scene_parse_150", tmp_path / "nowhere"):
        with pytest.raises(DataError, match="has no option 'image'"):
            open_dataset(with_options(str(data), image="pixels"), "training")
    with pytest.raises(DataError, match=r"unknown option 'imag' after '\?'; use image, mask, classes,"):
        open_dataset(f"{official}?imag=pixels", "training")
    with pytest.raises(DataError, match="unknown option 'what'"):
        open_dataset(f"{official}?what", "training")


def test_a_folder_may_have_a_question_mark(official: Path) -> None:
    renamed = official.rename(official.with_name("set?image=1"))
    assert len(open_dataset(renamed, "validation")) == 2
