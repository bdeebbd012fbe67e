"""Train, score, compare and export models of georeferenced scenes; refuse invalid input."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from affine import Affine
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from ccsegformer.config.protocol import EvaluationProtocol, WindowSection
from ccsegformer.data.pixels import BandStatistics, normalize
from ccsegformer.errors import DataError, RecipeError
from ccsegformer.evaluation.evaluate import evaluate
from ccsegformer.export import describe
from ccsegformer.lab import comparison, cost
from ccsegformer.labelling.labeller import predict_labels
from ccsegformer.labelling.loading import load_model
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation
from ccsegformer.raster.random_windows import band_statistics
from ccsegformer.report._display import as_rgb
from ccsegformer.report.failures import render_failures, worst_images
from ccsegformer.sources import open_dataset
from ccsegformer.training.recipe import Recipe, load_recipe
from ccsegformer.training.trainer import train

MakeRecipe = Callable[..., Recipe]
pytestmark = pytest.mark.usefixtures("tiny")
RECIPES = Path(__file__).parents[2] / "recipes"


def make_scenes(root: Path, *, bands: int, dtype: str) -> Path:
    """Write a training and a validation scene of bright objects on dark ground; all bands differ."""
    generator = np.random.default_rng(0)
    for place, split in enumerate(("training", "validation")):
        (root / split).mkdir(parents=True)
        grid = Affine(0.5, 0, 500_000 + 1000 * place, 0, -0.5, 5_000_000)
        labels = generator.integers(0, 2, (6, 5)).repeat(20, 0).repeat(20, 1).astype(np.uint8)
        values = np.stack(
            [labels * 20 * (band + 1) + generator.integers(10, 30, labels.shape) for band in range(bands)]
        )
        for name, array in (("s.tif", values.astype(dtype)), ("s_mask.tif", labels[None])):
            shape = {"count": len(array), "height": 120, "width": 100, "dtype": array.dtype}
            options = {"photometric": "MINISBLACK"} if name == "s.tif" and bands == 4 else {}
            with rasterio.open(
                root / split / name, "w", driver="GTiff", crs="EPSG:32633", transform=grid, **shape, **options
            ) as target:
                target.write(array)
    return root


def cropped(recipe: MakeRecipe, **more: object) -> Recipe:
    chain = [
        {"name": "random_resize", "probability": 1.0},
        {"name": "random_crop", "probability": 1.0, "sizes": [32]},
        {"name": "rotate90"},
    ]
    return recipe(training={"steps": 3, "save_steps": 2}).model_copy(
        update={
            "transforms": Recipe.model_validate({"training": {"steps": 1}, "transforms": chain}).transforms,
            **more,
        }
    )


@pytest.mark.parametrize(("bands", "dtype"), [(4, "uint16"), (1, "int16"), (4, "uint8"), (3, "float32")])
def test_any_bands_train_and_are_scored(
    bands: int, dtype: str, tmp_path: Path, recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_scenes(tmp_path / "data", bands=bands, dtype=dtype)
    train(cropped(recipe), data, tmp_path / "run")
    plural = "s" * (bands > 1)
    assert capsys.readouterr().err.startswith(
        f"{data}: 1 scene of {bands} band{plural} of {dtype}, normalised by their own statistics; an epoch "
        "is 4 windows of 64 pixels\n"
    )
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-3"):
        model, classes = load_model(folder)
        statistics = band_statistics(open_dataset(data, "training"))
        assert model.config.num_channels == bands and classes.names == ("background", "object")
        assert BandStatistics(tuple(model.config.band_means), tuple(model.config.band_stds)) == statistics
        processor = AutoImageProcessor.from_pretrained(folder)
        assert (processor.do_rescale, tuple(processor.image_mean)) == (False, statistics.means)
    validation = open_dataset(data, "validation")
    scored = evaluate(model, validation)
    assert scored.images == 1 and scored.metrics.mean_iou > 0
    about = describe(model.config, classes)
    assert json.loads(about["image_std"]) == list(statistics.stds) and about["rescale_factor"] == "1"
    page = render_failures(
        scored,
        classes,
        worst_images(model, validation, scored, EvaluationProtocol()),
        model="m",
        data="d",
        split="validation",
        command=[],
    )
    assert "s_0_0" in page


def test_8_bit_rgb_keeps_imagenet_s_statistics(tmp_path: Path, recipe: MakeRecipe) -> None:
    data = make_scenes(tmp_path / "data", bands=3, dtype="uint8")
    photometric = [*cropped(recipe).transforms, *recipe().transforms]
    train(cropped(recipe, transforms=tuple(photometric)), data, tmp_path / "run", progress=False)
    model, _ = load_model(tmp_path / "run")
    assert model.config.band_means is None and model.config.num_channels == 3
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run")
    assert processor.do_rescale and tuple(processor.image_mean) == (0.485, 0.456, 0.406)


def test_a_broken_off_run_resumes_to_the_same_weights(tmp_path: Path, recipe: MakeRecipe) -> None:
    data = make_scenes(tmp_path / "data", bands=4, dtype="uint16")
    whole = cropped(recipe)
    train(whole, data, tmp_path / "whole", progress=False)
    train(whole, data, tmp_path / "resumed", progress=False)
    (tmp_path / "resumed" / "model.safetensors").unlink()
    for path in (tmp_path / "resumed" / "checkpoint-3").iterdir():
        path.unlink()
    train(whole, data, tmp_path / "resumed", resume=True, progress=False)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_pretrained_colours_go_to_the_bands_that_are_colours(tmp_path: Path, recipe: MakeRecipe) -> None:
    data = make_scenes(tmp_path / "data", bands=5, dtype="uint16")
    Color = rasterio.enums.ColorInterp
    for path in data.glob("*/s.tif"):
        with rasterio.open(path, "r+") as target:
            target.colorinterp = (Color.blue, Color.green, Color.red, Color.undefined, Color.undefined)
    config = CrissCrossSegformerConfig.mit("b0", num_labels=2)
    CrissCrossSegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "rgb")
    model = recipe().model.model_copy(update={"pretrained": str(tmp_path / "rgb")})
    result = train(cropped(recipe, model=model), data, tmp_path / "run", progress=False)
    assert result.load_summary is not None
    assert "bands 1, 2, 3 take red, green and blue" in result.load_summary.adapted  # as they are read
    assert result.model.config.num_channels == 5


def test_a_comparison_of_scenes(tmp_path: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_scenes(tmp_path / "data", bands=4, dtype="uint16")
    monkeypatch.setattr(cost, "MEASURED_SECONDS", 0)

    def measure(model: Path, height: int, width: int) -> cost.Cost:  # in this process, which is faster
        return cost._measure(load_model(model)[0], height, width, "cpu")

    monkeypatch.setattr(comparison, "measure_cost", measure)
    results = comparison.compare(
        cropped(recipe), data, tmp_path / "out", attentions=["criss_cross"], progress=False
    )
    assert results["data"]["images"] == ["s_0_0"]
    assert (tmp_path / "out" / "report.html").exists()


def test_the_aerial_recipe_trains(tmp_path: Path) -> None:
    data = make_scenes(tmp_path / "data", bands=4, dtype="uint8")
    smaller = [
        "training.steps=2",
        "training.batch_size=2",
        "transforms.1.sizes=[32]",
        "schedule.warmup_steps=1",
    ]
    loaded = load_recipe(RECIPES / "aerial.yaml", smaller)
    result = train(loaded, data, tmp_path / "run", progress=False)
    assert all(np.isfinite(loss) for _, loss in result.loss_history)


@pytest.mark.parametrize("name", ["invert", "grayscale", "photometric_distortion"])
def test_transforms_of_colours_are_refused_for_other_bands(
    name: str, tmp_path: Path, recipe: MakeRecipe
) -> None:
    data = make_scenes(tmp_path / "data", bands=3, dtype="uint16")
    chain = Recipe.model_validate(
        {"training": {"steps": 1}, "transforms": [{"name": "rotate90"}, {"name": name}]}
    )
    with pytest.raises(RecipeError) as caught:
        train(cropped(recipe, transforms=chain.transforms), data, tmp_path / "run")
    assert str(caught.value) == (f"transforms.1: {name} is for 8-bit RGB, but {data} has 3 bands of uint16")
    assert not (tmp_path / "run").exists()


def test_windows_are_of_scenes(tmp_path: Path, data: Path, recipe: MakeRecipe) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"training": {"steps": 1}, "windows": {"rare_classes": 0.5}}))
    with pytest.raises(RecipeError, match=r"^windows: is for georeferenced scenes, but .* holds images$"):
        train(load_recipe(path), data, tmp_path / "run")
    with pytest.raises(RecipeError, match=r"'windows\.rare_classes' should be less than or equal to 1"):
        load_recipe(path, ["windows.rare_classes=2"])


def test_images_of_other_bands_are_refused_by_name() -> None:
    torch.manual_seed(0)
    own = {"num_channels": 4, "band_means": [1.0] * 4, "band_stds": [2.0] * 4}
    four = CrissCrossSegformerForSemanticSegmentation(CrissCrossSegformerConfig.mit("b0", **own)).eval()
    rgb = CrissCrossSegformerForSemanticSegmentation(CrissCrossSegformerConfig.mit("b0")).eval()
    with pytest.raises(DataError, match=r"^s: 3 bands for a model of 4$"):
        predict_labels(four, torch.zeros(3, 40, 40, dtype=torch.uint8), name="s")
    with pytest.raises(DataError, match=r"^s: .* for a model of 8-bit colours$"):
        predict_labels(rgb, torch.zeros(3, 40, 40), name="s")


def test_views_of_other_bands_are_normalised_by_their_statistics() -> None:
    torch.manual_seed(0)
    own = {"num_channels": 2, "band_means": [900.0, 50.0], "band_stds": [300.0, 10.0]}
    model = CrissCrossSegformerForSemanticSegmentation(CrissCrossSegformerConfig.mit("b0", **own)).eval()
    image = torch.randn(2, 64, 96) * torch.tensor([300.0, 10.0])[:, None, None] + 900
    with torch.inference_mode():
        pixels = normalize(image, BandStatistics((900.0, 50.0), (300.0, 10.0)))[None]
        logits = torch.nn.functional.interpolate(model(pixels).logits, size=(64, 96), mode="bilinear")
    agree = predict_labels(model, image) == logits[0].argmax(dim=0)
    assert agree.float().mean() > 0.999  # ties may differ
    views = EvaluationProtocol(window=WindowSection(size=48, stride=32), scales=(0.5, 1.0), flip=True)
    assert predict_labels(model, image, views).shape == (64, 96)


def test_other_bands_become_a_picture() -> None:
    eight = torch.randint(0, 256, (3, 9, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(as_rgb(eight), eight.permute(1, 2, 0))
    for bands in (1, 2, 3, 6):
        image = torch.arange(bands * 10_000, dtype=torch.float32).reshape(bands, 100, 100) * 7 - 4000
        picture = as_rgb(image)
        assert picture.shape == (100, 100, 3) and picture.dtype == np.uint8
        assert (picture.min(), picture.max()) == (0, 255)
        assert (np.diff(picture[..., 0].ravel().astype(int)) >= 0).all()
    assert not as_rgb(torch.full((2, 5, 5), 3.0)).any()
