"""`ccsegformer convert`, from end to end."""

from pathlib import Path

import pytest

from ccsegformer.conversion import images as images_module
from ccsegformer.conversion import run as run_module
from tests.cli.conftest import Run
from tests.conversion.conftest import images as images
from tests.models.test_modeling import tiny


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    monkeypatch.setattr(run_module, "CALIBRATION", 2)
    monkeypatch.setattr(run_module, "CHOICE", 1)
    monkeypatch.setattr(images_module, "HELD_BACK", (2, 2))
    tiny(attention="efficient", num_labels=2).save_pretrained(tmp_path / "nvidia")
    capsys.readouterr()  # transformers shows a bar
    return tmp_path / "nvidia"


def test_a_model_is_converted_and_predicts(run: Run, checkpoint: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "converted"
    options = ("--size", 32, "--steps", 1, "--attention", "efficient, criss_cross,efficient,efficient")
    done = run("convert", checkpoint, "--images", images, "--output", output, *options)
    assert done.code == 0, done.err
    assert done.out.endswith(f"{output}: converted\n") and "pixels that agree" in done.out
    assert "ridge: " in done.err and "not for commercial use" in done.err
    photograph = next(images.iterdir())
    assert run("predict", output, photograph, "--output", tmp_path / "labelled").code == 0


def test_failures_are_one_line(run: Run, checkpoint: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "converted"
    done = run("convert", checkpoint, "--images", images, "--output", output, "--attention", "a,b")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "attention: 2 names for the 4 stages" in done.err
    done = run("convert", checkpoint, "--images", tmp_path, "--output", output)
    assert (done.code, done.err.count("\n")) == (1, 1) and "no images in this folder" in done.err
    assert not output.exists()
