"""The counts of the seams benchmark, on maps made by hand and by a small network."""

import numpy as np
import pytest
import torch

from benchmarks.seams import REACH, compare, disagreement, seam_mask, steps
from ccsegformer.labelling.windows import label_image
from tests.labelling.test_scene import tiny_model


def test_seams_lie_around_the_cuts():
    seams = seam_mask(90, 160, 96, 32)
    columns = np.flatnonzero(seams[0])
    assert columns.tolist() == list(range(80 - REACH, 80 + REACH))
    assert seams[:, 80].all()


def test_disagreement_is_split_into_seams_and_elsewhere():
    whole = torch.zeros(64, 128, dtype=torch.uint8)
    labels = whole.clone()
    seams = seam_mask(64, 128, 64, 0)
    labels[:, 64] = 1
    assert disagreement(labels, whole, seams) == (pytest.approx(1 / 32), 0)
    assert steps(labels, whole, 64, 0) == (1, 0)
    assert steps(whole, whole, 64, 0) == (0, 0)


def test_overlapping_windows_leave_fewer_seams():
    model = tiny_model()
    generator = np.random.default_rng(0)
    images = [torch.from_numpy(generator.integers(0, 256, (3, 256, 256), dtype=np.uint8))]
    wholes = [label_image(model, images[0], 256, 0)]
    cut, blended = (compare(model, images, 96, overlap, wholes) for overlap in (0, 32))
    assert blended[2] < cut[2]
    assert blended[0] < cut[0]
