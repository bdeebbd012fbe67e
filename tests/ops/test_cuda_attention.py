"""The flash backend's CUDA path without a GPU, with CPU stand-ins that follow the kernels' contract.

The contract is in PyTorch's aten/src/ATen/native/transformers/cuda: attention*.cu and mem_eff_attention.
"""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import Tensor

from ccsegformer.ops import criss_cross_attention, flash
from tests.ops.test_criss_cross import outputs_and_gradients, tensors

ALIGNMENT = 32  # the kernels pad the log-sum-exp to a multiple of this many positions


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert attn_bias is None and compute_log_sumexp and not dropout_p and not is_causal
    assert all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    scores = query.float() @ key.float().mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    lse = scores.logsumexp(-1)
    out = (scores - lse[..., None]).exp() @ value.float()
    padded = lse.new_full((*lse.shape[:2], -(-lse.shape[2] // ALIGNMENT) * ALIGNMENT), torch.inf)
    padded[..., : lse.shape[2]] = lse
    seed = torch.zeros((), dtype=torch.int64)
    token_major = out.transpose(1, 2).contiguous().transpose(1, 2)
    return token_major.to(query.dtype), padded, seed, seed


def attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    philox_seed: Tensor,
    philox_offset: Tensor,
    dropout_p: float,
    grad_input_mask: list[bool],
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, None]:
    assert attn_bias is None and not dropout_p and not is_causal
    assert grad_input_mask == [True, True, True, False]
    assert philox_seed.dtype == philox_offset.dtype == torch.int64
    length = query.shape[2]
    # The kernel gets pointers and no sizes: it reads densely along the length and past the last position.
    assert logsumexp.dtype == torch.float32 and logsumexp.is_contiguous()
    assert logsumexp.shape == (*query.shape[:2], -(-length // ALIGNMENT) * ALIGNMENT)
    assert logsumexp[..., length:].isposinf().all()
    assert out.transpose(1, 2).is_contiguous()
    assert all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    grad, query, key, value, out = (each.float() for each in (grad_out, query, key, value, out))
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    weights = (query @ key.mT * factor - logsumexp[..., :length, None]).exp()
    grad_weights = grad @ value.mT - (grad * out).sum(-1, keepdim=True)
    grad_scores = weights * grad_weights * factor
    grads = grad_scores @ key, grad_scores.mT @ query, weights.mT @ grad
    return *(each.to(grad_out.dtype) for each in grads), None


@pytest.fixture
def stand_ins():
    """Replace the CUDA kernels by stand-ins, and send CPU tensors to them."""
    kernels = SimpleNamespace(
        _scaled_dot_product_efficient_attention=mock.Mock(side_effect=attention),
        _scaled_dot_product_efficient_attention_backward=mock.Mock(side_effect=attention_backward),
    )
    with (
        mock.patch.object(flash, "aten", kernels),
        mock.patch.object(flash, "STRIP_ELEMENTS", 2**40),  # CUDA uses no strips
        mock.patch.object(flash, "_attention", flash._efficient_attention),
        mock.patch.object(flash, "_attention_backward", flash._efficient_attention_backward),
    ):
        yield kernels


@pytest.mark.parametrize("size", [(1, 1), (7, 33), (32, 64), (40, 32)], ids=str)
@pytest.mark.parametrize(("head_dim", "value_dim"), [(16, 16), (8, 24)])
def test_outputs_and_gradients_follow_the_definition(
    stand_ins: SimpleNamespace, size: tuple[int, int], head_dim: int, value_dim: int
) -> None:
    inputs = tensors((2, 3, *size, head_dim), value_dim=value_dim)
    exact = outputs_and_gradients("reference", inputs, torch.float64)
    for ours, truth in zip(outputs_and_gradients("flash", inputs, torch.float32), exact, strict=True):
        torch.testing.assert_close(ours.double(), truth, atol=2e-5, rtol=1e-4)
    assert stand_ins._scaled_dot_product_efficient_attention.call_count == 2  # rows and columns
    assert stand_ins._scaled_dot_product_efficient_attention_backward.call_count == 2


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_the_given_scale_is_used(stand_ins: SimpleNamespace, scale: float) -> None:
    *inputs, gradient = tensors((1, 2, 5, 6, 16))
    results = []
    for dtype, backend in ((torch.float64, "reference"), (torch.float32, "flash")):
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in inputs]
        out = criss_cross_attention(*leaves, scale=scale, backend=backend)
        out.backward(gradient.to(dtype))
        results.append([out.detach().double(), *(leaf.grad.double() for leaf in leaves)])
    for truth, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, truth, atol=2e-5, rtol=1e-4)
