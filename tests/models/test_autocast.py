"""Under autocast, the whole model stays as close to float32 as bfloat16 allows."""

import pytest
import torch

from tests.models.test_modeling import pixels, shake, tiny

ROUNDING = 2**-8  # of bfloat16, accumulated over a few dozen layers


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    "overrides",
    [{}, {"attention": "efficient"}, {"projection": "ccnet", "recurrence": 2}],
    ids=["multi_head", "efficient", "ccnet"],
)
def test_forward_and_backward_are_close_to_float32(overrides: dict[str, object]) -> None:
    model = tiny(drop_path_rate=0.0, classifier_dropout_prob=0.0, **overrides).train()
    shake(model)
    labels = torch.randint(0, 3, (2, 64, 96), generator=torch.Generator().manual_seed(0))
    results = []
    for precise in (True, False):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            out = model(pixels(2, 64, 96), labels=labels)
        out.loss.backward()
        assert out.loss.dtype == torch.float32
        results.append((out.logits.detach(), out.loss.detach(), [p.grad for p in model.parameters()]))
    (logits, loss, gradients), (rough_logits, rough_loss, rough_gradients) = results
    assert rough_logits.dtype == torch.bfloat16
    assert relative_error(rough_logits.float(), logits) < 4 * ROUNDING
    assert relative_error(rough_loss, loss) < ROUNDING
    gradient, rough_gradient = (
        torch.cat([part.flatten() for part in parts]) for parts in (gradients, rough_gradients)
    )
    assert relative_error(rough_gradient, gradient) < 12 * ROUNDING
