"""Under autocast, criss-cross attention follows the dtype rules of PyTorch's own attention."""

from itertools import product

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from ccsegformer.ops import criss_cross_attention
from tests.ops.test_criss_cross import tensors

NARROW = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("backend", ["flash", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mixed_dtypes_are_cast_as_in_pytorchs_attention(dtype: torch.dtype, backend: str) -> None:
    for dtypes in product(NARROW, repeat=3):
        inputs = [tensor.to(own) for tensor, own in zip(tensors((1, 2, 3, 4, 16)), dtypes, strict=False)]
        with torch.autocast("cpu", dtype):
            out = criss_cross_attention(*inputs, backend=backend)
            theirs = scaled_dot_product_attention(*(tensor.flatten(2, 3) for tensor in inputs))
        assert out.dtype == theirs.dtype == dtype
        expected = criss_cross_attention(*(tensor.to(dtype) for tensor in inputs), backend=backend)
        torch.testing.assert_close(out, expected)


def test_float64_is_not_cast_and_must_not_be_mixed() -> None:
    inputs = tensors((1, 2, 3, 4, 16))[:3]
    with torch.autocast("cpu", torch.bfloat16):
        assert criss_cross_attention(*inputs).dtype == torch.float64
        with pytest.raises(ValueError, match=r"key is torch\.bfloat16 on cpu, query is torch\.float64"):
            criss_cross_attention(inputs[0], inputs[1].float(), inputs[2].float())


def test_gradients_have_the_dtypes_of_the_inputs() -> None:
    query, key, value, gradient = tensors((1, 2, 3, 4, 16), dtype=torch.float32)
    leaves = [query.requires_grad_(), key.bfloat16().requires_grad_(), value.requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16):
        criss_cross_attention(*leaves).backward(gradient.bfloat16())
    narrow = [leaf.detach().bfloat16().requires_grad_() for leaf in leaves]
    criss_cross_attention(*narrow).backward(gradient.bfloat16())
    for leaf, expected in zip(leaves, narrow, strict=True):
        assert torch.equal(leaf.grad, expected.grad.to(leaf.dtype))


def test_the_operator_itself_casts() -> None:
    query, key, value, _ = tensors((1, 2, 3, 4, 16), dtype=torch.float32)
    with torch.autocast("cpu", torch.float16):
        out, lse = torch.ops.ccsegformer.flash_criss_cross(query, key.bfloat16(), value, 0.25)
        assert torch.is_autocast_enabled("cpu")
    halves = (query.half(), key.bfloat16().half(), value.half())
    expected = torch.ops.ccsegformer.flash_criss_cross(*halves, 0.25)
    assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1])


@pytest.mark.parametrize("inside", [False, True])
def test_it_compiles_without_graph_breaks(inside: bool) -> None:
    def attend(*inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return criss_cross_attention(*inputs)

    inputs = tensors((1, 2, 3, 4, 16), dtype=torch.float32)[:3]
    compiled = torch.compile(attend if inside else criss_cross_attention, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=not inside):
        assert torch.equal(compiled(*inputs), attend(*inputs))
