"""`ccsegformer export`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation


def test_export(run: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = CrissCrossSegformerConfig(
        num_encoder_blocks=2,
        hidden_sizes=(8, 16),
        depths=(1, 1),
        num_attention_heads=(1, 2),
        decoder_hidden_size=16,
        projection="ccnet",
        num_labels=3,
    )
    CrissCrossSegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    capsys.readouterr()  # transformers' progress bar
    output = tmp_path / "exported" / "model"
    done = run("export", tmp_path / "model", "--format", "onnx", "--output", output)
    assert (done.code, done.err) == (0, "")
    assert (
        done.out.startswith(f"{output}: differs from PyTorch by at most ") and len(done.out.splitlines()) == 1
    )

    again = run("export", tmp_path / "model", "--format", "pt2", "--output", output)
    assert again.code == 1
    assert again.err.startswith(f"ccsegformer: error: {output}: already exists")
    assert len(again.err.splitlines()) == 1
    done = run("export", tmp_path / "model", "--format", "pt2", "--output", output, "--overwrite")
    assert (done.code, done.err) == (0, "")
    torch.export.load(output)
