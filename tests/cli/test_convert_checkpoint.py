"""`ccsegformer convert-checkpoint` writes a whole folder or none, and other commands name it."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import SegformerForSemanticSegmentation, SegformerImageProcessor

from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.models import configuration_ccsegformer
from tests.cli.conftest import Run
from tests.models.test_original_checkpoints import DECODER, DEPTHS, NAMES, WIDTHS, nvlabs_weights


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(configuration_ccsegformer._MIT, "b0", (WIDTHS, DEPTHS, DECODER))
    path = tmp_path / "model.pth"
    torch.save({"meta": {"CLASSES": NAMES}, "state_dict": nvlabs_weights()}, path)
    return path


def test_a_model_becomes_a_folder_that_predicts(checkpoint: Path, run: Run, tmp_path: Path) -> None:
    output = tmp_path / "new" / "folder"
    outcome = run("convert-checkpoint", checkpoint, "--output", output)
    assert outcome.code == 0 and outcome.out == f"{output}: converted\n"
    assert "SegFormer-B0, 3 classes: 136 tensors used, 2 unused\n" in outcome.err
    assert "unused: decode_head.conv_seg.bias" in outcome.err and "not for commercial use" in outcome.err
    assert sorted(path.name for path in output.parent.iterdir()) == ["folder"]
    model = SegformerForSemanticSegmentation.from_pretrained(output)
    assert tuple(model.config.id2label.values()) == NAMES
    assert not SegformerImageProcessor.from_pretrained(output).do_resize
    photograph = tmp_path / "photograph.png"
    Image.new("RGB", (64, 48), (90, 120, 40)).save(photograph)
    assert run("predict", output, photograph, "--output", tmp_path / "labelled").code == 0


def test_given_classes_and_an_encoder_alone(checkpoint: Path, run: Run, tmp_path: Path) -> None:
    classes = Classes(("a", "b", "c"), ignore_index=100)
    write_classes(classes, tmp_path / "classes.json")
    options = ("--classes", tmp_path / "classes.json")
    assert run("convert-checkpoint", checkpoint, "--output", tmp_path / "whole", *options).code == 0
    assert (tmp_path / "whole/classes.json").read_text() == (tmp_path / "classes.json").read_text()
    outcome = run("convert-checkpoint", checkpoint, "--output", tmp_path / "encoder", "--encoder-only")
    assert outcome.code == 0 and "no decode head: train one with this folder" in outcome.err


def test_nothing_is_left_of_a_failed_conversion(checkpoint: Path, run: Run, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    outcome = run("convert-checkpoint", checkpoint, "--output", tmp_path / "model")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1) and "model.pth: damaged" in outcome.err
    outcome = run("convert-checkpoint", checkpoint, "--output", tmp_path)
    assert outcome.code == 1 and "exists; choose another folder" in outcome.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "--data", "procedural"),
        ("predict", "x.png", "--output", "labelled"),
        ("export", "--format", "onnx", "--output", "x.onnx"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".bin"])
def test_other_commands_say_to_convert(
    command: tuple[str, ...], suffix: str, checkpoint: Path, run: Run
) -> None:
    path = checkpoint.rename(checkpoint.with_suffix(suffix))
    outcome = run(command[0], path, *command[1:])
    assert outcome.code == 1 and f"ccsegformer convert-checkpoint {path} --output DIR" in outcome.err
