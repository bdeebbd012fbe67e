"""Training on data set objects equals training on the same images in a folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import Dataset

from ccsegformer.data.objects import as_dataset
from ccsegformer.data.pixels import BandStatistics, measure_bands
from ccsegformer.errors import DataError, OutputError, RecipeError
from ccsegformer.evaluation.evaluate import evaluate
from ccsegformer.labelling.loading import load_model
from ccsegformer.sources import open_dataset
from ccsegformer.training import _inputs
from ccsegformer.training.recipe import Recipe, load_recipe
from ccsegformer.training.trainer import train

MakeRecipe = Callable[..., Recipe]
pytestmark = pytest.mark.usefixtures("tiny")
NAMES = ["red", "green", "blue"]


class Pairs(Dataset[Any]):
    """Files of a folder as Pillow images, in torchvision's form."""

    def __init__(self, root: Path) -> None:
        self.files = sorted((root / "images" / "training").iterdir())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        path = self.files[index]
        return Image.open(path).convert("RGB"), Image.open(
            path.parents[2] / "annotations/training" / path.name
        )


class Bands(Pairs):
    """Four float bands of different units, in torchgeo's form."""

    classes = NAMES

    def __getitem__(self, index: int) -> Any:
        image, mask = (torch.from_numpy(np.array(each)) for each in super().__getitem__(index))
        bands = torch.cat([image, image[..., :1]], dim=2).permute(2, 0, 1).float()
        return {
            "image": bands * torch.tensor([1, 10, 100, 1000])[:, None, None] - 7,
            "mask": mask.long()[None],
        }


def assert_same_weights(one: Path, other: Path) -> None:
    left, right = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_an_object_trains_as_its_folder_does(
    tmp_path: Path, data: Path, recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    short = recipe(training={"steps": 2})
    train(short, data, tmp_path / "folder", progress=False)
    train(short, Pairs(data), tmp_path / "pairs", classes=NAMES, progress=False)
    train(short, open_dataset(data, "training"), tmp_path / "opened", progress=False)
    workers = recipe(training={"steps": 2, "workers": 2})
    train(workers, as_dataset(Pairs(data), NAMES), tmp_path / "workers", progress=False)
    for name in ("pairs", "opened", "workers"):
        assert_same_weights(tmp_path / "folder", tmp_path / name)
    assert capsys.readouterr().err == ""
    assert load_recipe(tmp_path / "pairs" / "recipe.yaml").data == "Pairs object, 5 samples"
    assert load_recipe(tmp_path / "opened" / "recipe.yaml").data == "ImageMaskFolder object, 5 samples"
    assert load_model(tmp_path / "pairs")[1].names == tuple(NAMES)
    assert load_model(tmp_path / "pairs")[0].config.band_means is None


def test_other_bands_are_normalised_by_their_own_statistics(
    tmp_path: Path,
    data: Path,
    recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset = Bands(data)
    train(recipe(training={"steps": 1}), dataset, tmp_path / "run")
    assert capsys.readouterr().err.startswith(
        "Bands object, 5 samples: 4 bands of float32, normalised by their own "
        "statistics, measured on 5 samples\n"
    )
    pixels = torch.cat([dataset[index]["image"].flatten(1) for index in range(5)], dim=1).double()
    config = load_model(tmp_path / "run")[0].config
    assert config.num_channels == 4
    assert config.band_means == pytest.approx(pixels.mean(dim=1).tolist())
    assert config.band_stds == pytest.approx(pixels.std(dim=1, correction=0).tolist())
    scored = evaluate(load_model(tmp_path / "run")[0], dataset)
    assert scored.images == 5 and list(scored.metrics.per_class) == NAMES
    monkeypatch.setattr(_inputs, "STATISTICS_SAMPLES", 2)
    train(recipe(training={"steps": 1}), dataset, tmp_path / "few")
    assert "measured on 2 samples\n" in capsys.readouterr().err
    ends = [dataset[index]["image"].flatten(1).numpy() for index in (0, 4)]
    found = load_model(tmp_path / "few")[0].config
    assert BandStatistics(tuple(found.band_means), tuple(found.band_stds)) == measure_bands(ends)


def test_colour_transforms_are_refused_for_other_bands(
    tmp_path: Path, data: Path, recipe: MakeRecipe
) -> None:
    chain = Recipe.model_validate({"training": {"steps": 1}, "transforms": [{"name": "invert"}]}).transforms
    with pytest.raises(RecipeError) as caught:
        train(recipe().model_copy(update={"transforms": chain}), Bands(data), tmp_path / "run")
    assert str(caught.value) == (
        "transforms.0: invert is for 8-bit RGB, but Bands object, 5 samples has 4 bands of float32"
    )
    train(
        recipe(training={"steps": 1}).model_copy(update={"transforms": chain}),
        Pairs(data),
        tmp_path / "rgb",
        classes=NAMES,
    )


def test_a_run_on_an_object_resumes(tmp_path: Path, data: Path, recipe: MakeRecipe) -> None:
    for name in ("whole", "broken"):
        train(recipe(), Bands(data), tmp_path / name, progress=False)
    (tmp_path / "broken" / "model.safetensors").unlink()
    for path in (tmp_path / "broken" / "checkpoint-6").iterdir():
        path.unlink()
    train(recipe(), Bands(data), tmp_path / "broken", resume=True, progress=False)
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    fewer = Bands(data)
    fewer.files = fewer.files[:4]
    for other in (fewer, Pairs(data)):
        with pytest.raises(RecipeError, match=r"had another data$"):
            train(recipe(), other, tmp_path / "broken", classes=NAMES, resume=True)
    with pytest.raises(OutputError, match="other classes"):
        train(recipe(), Bands(data), tmp_path / "broken", classes=["r", "g", "b"], resume=True)


def test_an_unusable_object_is_one_line_and_leaves_nothing(
    tmp_path: Path, data: Path, recipe: MakeRecipe
) -> None:
    class Late(Pairs):
        def __getitem__(self, index: int) -> Any:
            if index == 3:
                raise OSError("the disk is gone")
            return super().__getitem__(index)

    with pytest.raises(DataError, match=r"^Pairs: has no class names"):
        train(recipe(), Pairs(data), tmp_path / "run")
    with pytest.raises(
        DataError, match=r"^Pairs\[\d\]: label 2 at row \d+, column \d+ is outside the classes 0-1 "
    ):
        train(recipe(), Pairs(data), tmp_path / "run", classes=["red", "green"])
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"^Late\[3\]: OSError: the disk is gone$"):
            train(recipe(training={"workers": workers}), Late(data), tmp_path / "run", classes=NAMES)
    assert not (tmp_path / "run").exists()


def test_samples_that_are_drawn(tmp_path: Path, data: Path, recipe: MakeRecipe) -> None:
    class Drawn:
        def __init__(self, images: Any) -> None:
            self.images, self.classes = images, images.classes

        def __len__(self) -> int:
            return len(self.images)

        def draw(self, index: int, generator: torch.Generator) -> Any:
            sample = self.images[index]
            top = int(torch.randint(0, 32, (), generator=generator))
            return {**sample, "image": sample["image"][:, top:][:, :32], "mask": sample["mask"][top:][:32]}

    for name in ("one", "two"):
        train(recipe(), Drawn(as_dataset(Bands(data))), tmp_path / name, progress=False)
    assert_same_weights(tmp_path / "one", tmp_path / "two")
    assert load_model(tmp_path / "one")[0].config.num_channels == 4
    with pytest.raises(DataError, match=r"^Drawn: draws its samples at random; score fixed images$"):
        evaluate(load_model(tmp_path / "one")[0], Drawn(as_dataset(Bands(data))))
