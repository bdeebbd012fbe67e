"""`ccsegformer export`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation


def make() -> CrissCrossSegformerForSemanticSegmentation:
    config = CrissCrossSegformerConfig(
        num_encoder_blocks=2,
        hidden_sizes=(8, 16),
        depths=(1, 1),
        num_attention_heads=(1, 2),
        decoder_hidden_size=16,
        projection="ccnet",
        num_labels=3,
    )
    return CrissCrossSegformerForSemanticSegmentation(config)


def test_export(run: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make().save_pretrained(tmp_path / "model")
    capsys.readouterr()  # transformers' progress bar
    output = tmp_path / "exported" / "model"
    done = run("export", tmp_path / "model", "--format", "onnx", "--output", output)
    assert (done.code, done.err) == (0, "")
    checked, described = done.out.splitlines()
    assert checked.startswith(f"{output}: differs from PyTorch by at most ")
    assert described.startswith(f"{output}.json: ") and output.with_name("model.json").is_file()

    again = run("export", tmp_path / "model", "--format", "pt2", "--output", output)
    assert again.code == 1
    assert again.err.startswith(f"ccsegformer: error: {output}: already exists")
    assert len(again.err.splitlines()) == 1
    done = run("export", tmp_path / "model", "--format", "pt2", "--output", output, "--overwrite")
    assert (done.code, done.err) == (0, "")
    torch.export.load(output)

    other = tmp_path / "exported" / "model.pt2"  # its item would be model.json
    taken = run("export", tmp_path / "model", "--format", "pt2", "--output", other)
    assert taken.code == 1 and "model.json: already exists" in taken.err and not other.exists()


def test_without_stac_model_a_pt2_file_has_no_item(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().save_pretrained(tmp_path / "model")
    monkeypatch.setattr("ccsegformer.export.export", lambda model, classes, path, *_, **__: path.touch())
    for name in [each for each in sys.modules if each.split(".")[0] == "stac_model"] + ["stac_model"]:
        monkeypatch.setitem(sys.modules, name, None)
    done = run("export", tmp_path / "model", "--format", "pt2", "--output", tmp_path / "m.pt2")
    assert done.code == 0 and (tmp_path / "m.pt2").is_file() and not (tmp_path / "m.json").exists()
    assert "m.json needs stac_model, which is not installed: pip install 'ccsegformer[export]'" in done.err
