"""Composed weights against the product of two dense N x N matrices."""

import pytest
import torch
from torch import Tensor

from ccsegformer.ops import composed_criss_cross_weights, criss_cross_attention
from tests.ops.test_criss_cross import tensors


def dense(query: Tensor, key: Tensor, scale: float | None = None) -> Tensor:
    """Return the attention matrix (batch, heads, N, N): the operation applied to one-hot values."""
    height, width = query.shape[2:4]
    one_hot = torch.eye(height * width, dtype=query.dtype).view(1, 1, height, width, -1)
    values = one_hot.expand(*query.shape[:2], -1, -1, -1)
    return criss_cross_attention(query, key, values, scale=scale).flatten(2, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (6, 1), (5, 7)])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_it_is_a_row_of_the_product_of_two_attention_matrices(
    size: tuple[int, int], scale: float | None
) -> None:
    first = tuple(tensors((2, 2, *size, 4))[:2])
    second = tuple(tensors((2, 3, *size, 4), seed=1)[:2])
    averaged = dense(*first, scale).mean(dim=1, keepdim=True)
    product = (dense(*second, scale) @ averaged).unflatten(2, size).unflatten(4, size)
    for h in range(size[0]):
        for w in range(size[1]):
            composed = composed_criss_cross_weights(first, second, (h, w), scale=scale)
            torch.testing.assert_close(composed, product[:, :, h, w])


def test_after_two_applications_every_position_is_seen() -> None:
    first, second = (tuple(tensors((1, 1, 5, 7, 4), seed=seed)[:2]) for seed in (0, 1))
    composed = composed_criss_cross_weights(first, second, (3, 2))
    assert (composed > 0).all()
    torch.testing.assert_close(composed.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_a_position_outside_the_grid_is_refused() -> None:
    pair = tuple(tensors((1, 1, 5, 7, 4))[:2])
    with pytest.raises(IndexError, match="outside the 5 x 7 grid"):
        composed_criss_cross_weights(pair, pair, (2, 7))
