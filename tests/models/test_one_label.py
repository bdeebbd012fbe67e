"""One label: the logits, loss and gradients of transformers' models with `num_labels=1`."""

from pathlib import Path

import pytest
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from ccsegformer.models import load_trained
from ccsegformer.models.losses import SegmentationLoss

SIZES = {"hidden_sizes": [8, 16, 40, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16}


@pytest.mark.parametrize("ignored", [0.0, 0.25])
def test_the_loss_and_its_gradient_are_those_of_transformers(tmp_path: Path, ignored: float) -> None:
    torch.manual_seed(0)
    theirs = SegformerForSemanticSegmentation(SegformerConfig(num_labels=1, **SIZES)).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_trained(str(tmp_path))
    pixels, labels = torch.randn(2, 3, 64, 96), torch.randint(0, 2, (2, 64, 96))
    labels[:, : int(64 * ignored)] = 255
    expected, found = theirs(pixels, labels=labels), ours(pixels, labels=labels)
    assert found.logits.shape == (2, 1, 16, 24)
    torch.testing.assert_close(found.logits, expected.logits)
    # transformers divides by all pixels, also those that it ignores.
    torch.testing.assert_close(found.loss * (1 - ignored), expected.loss)
    for loss in (found.loss * (1 - ignored), expected.loss):
        loss.backward()
    gradients = [model.decode_head.classifier.weight.grad for model in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", ["cross_entropy", "focal", "dice", "lovasz"])
def test_every_loss_is_that_of_the_logits_0_and_x(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logit = torch.randn(2, 1, 5, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (2, 20, 24), generator=generator)
    loss = SegmentationLoss(**{"cross_entropy": 0.0, kind: 1.0}, class_weights=(1.0, 3.0))
    pair = torch.cat([torch.zeros_like(logit), logit], dim=1)
    assert loss(logit, labels, 255) == loss(pair, labels, 255) > 0


def test_a_label_above_1_is_refused() -> None:
    with pytest.raises(ValueError, match="label 2 is neither one of the 2 classes"):
        SegmentationLoss()(torch.zeros(1, 1, 4, 4), torch.full((1, 4, 4), 2), 255)
