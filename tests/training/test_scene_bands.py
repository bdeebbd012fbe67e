"""Bands that were chosen for training are those that labelling and scoring take."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import rasterio

from ccsegformer.errors import DataError
from ccsegformer.evaluation.evaluate import evaluate
from ccsegformer.export import export
from ccsegformer.labelling.loading import load_engine, load_model
from ccsegformer.labelling.scene import predict_scene
from ccsegformer.models import CrissCrossSegformerConfig
from ccsegformer.sources import open_dataset
from ccsegformer.training.recipe import Recipe
from ccsegformer.training.trainer import train
from tests.training.test_scenes import cropped, make_scenes

MakeRecipe = Callable[..., Recipe]
pytestmark = pytest.mark.usefixtures("tiny")


def labels_of(model: object, scene: Path, output: Path, **options: object) -> tuple[bytes, tuple[str, ...]]:
    done = predict_scene(model, scene, output, **options)  # type: ignore[arg-type]
    with rasterio.open(done.path) as map_:
        return map_.read(1).tobytes(), tuple(done.notes)


@pytest.mark.parametrize("dtype", ["uint16", "uint8"])
def test_chosen_bands_go_with_the_model(
    dtype: str, tmp_path: Path, recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_scenes(tmp_path / "data", bands=4, dtype=dtype)
    run, scene = tmp_path / "run", data / "validation" / "s.tif"
    train(cropped(recipe), f"{data}?bands=4,2,1", run, progress=False)
    model, classes = load_model(run)
    assert model.config.scene_bands == [4, 2, 1]

    chosen, notes = labels_of(run, scene, tmp_path / "given.tif", bands=(4, 2, 1))
    assert notes == ()
    assert labels_of(run, scene, tmp_path / "default.tif") == (chosen, ())
    _, notes = labels_of(run, scene, tmp_path / "other.tif", bands=(1, 2, 3))
    assert notes == (f"{scene}: bands 1,2,3; the model was trained on bands 4,2,1",)
    export(model, classes, tmp_path / "model.pt2", "pt2")
    assert load_engine(tmp_path / "model.pt2")[0].scene_bands == (4, 2, 1)

    capsys.readouterr()
    wanted = evaluate(model, open_dataset(f"{data}?bands=4,2,1", "validation")).confusion
    assert evaluate(model, data).confusion == wanted
    assert "bands" not in capsys.readouterr().err
    evaluate(model, f"{data}?bands=1,2,3")
    assert f"{data}: other bands than 4,2,1, those of the training" in capsys.readouterr().err


def test_a_scene_without_those_bands_is_refused_with_the_remedy(tmp_path: Path, recipe: MakeRecipe) -> None:
    data = make_scenes(tmp_path / "data", bands=4, dtype="uint16")
    train(cropped(recipe), f"{data}?bands=4,2,1", tmp_path / "run", progress=False)
    small = make_scenes(tmp_path / "small", bands=3, dtype="uint16") / "validation" / "s.tif"
    with pytest.raises(
        DataError, match=r"has no band 4; .*, and the model was trained on bands 4,2,1: .* with --bands$"
    ):
        predict_scene(tmp_path / "run", small, tmp_path / "map.tif")
    predict_scene(tmp_path / "run", small, tmp_path / "map.tif", bands=(3, 2, 1))


def test_without_a_choice_nothing_is_stored(tmp_path: Path, recipe: MakeRecipe) -> None:
    data = make_scenes(tmp_path / "data", bands=4, dtype="uint16")
    train(cropped(recipe), data, tmp_path / "run", progress=False)
    assert load_model(tmp_path / "run")[0].config.scene_bands is None
    shutil.rmtree(tmp_path / "run")


@pytest.mark.parametrize("bands", [[4, 2], [4, 2, 2], [0, 1, 2]])
def test_bands_must_suit_the_network(bands: list[int]) -> None:
    with pytest.raises(ValueError, match="scene_bands must be 3 different numbers from 1"):
        CrissCrossSegformerConfig(scene_bands=bands)
