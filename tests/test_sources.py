from pathlib import Path

import pytest
import torch

from ccsegformer.data.procedural.scenes import ProceduralScenes
from ccsegformer.errors import DataError
from ccsegformer.sources import PROCEDURAL_COUNTS, open_dataset


def test_generated_scenes_go_by_their_name() -> None:
    training, validation = (open_dataset("procedural", split) for split in ("training", "validation"))
    assert isinstance(training, ProceduralScenes)
    assert {"training": len(training), "validation": len(validation)} == PROCEDURAL_COUNTS
    assert not set(training.names) & set(validation.names)
    assert not torch.equal(training[0]["image"], validation[0]["image"])
    with pytest.raises(DataError, match="procedural: no split 'test'; the splits are training, validation"):
        open_dataset("procedural", "test")


def test_anything_else_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images/training: no such folder"):
        open_dataset(str(tmp_path), "training")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        open_dataset(tmp_path / "nowhere", "training")
