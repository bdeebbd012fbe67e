"""Tests of the fused backend that `test_fused.py` runs in a separate process.

On a GPU the kernels are compiled and run. Without one, Triton's interpreter runs them on the CPU, for which
TRITON_INTERPRET=1 must be set before Triton is imported.
"""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ccsegformer.lab.cost import count_flops
from ccsegformer.ops import criss_cross_attention, fused
from tests.lab.test_cost import Attention
from tests.ops.test_criss_cross import outputs_and_gradients, tensors

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module", autouse=True)
def corrected_interpreter():
    """Fix bfloat16 in Triton's interpreter, and patch its language once instead of at each call."""
    with pytest.MonkeyPatch.context() as patch:
        if fused.INTERPRETED:
            fix_interpreter(patch)
        yield


def fix_interpreter(patch: pytest.MonkeyPatch) -> None:
    import triton.language as tl
    from triton.runtime import interpreter

    builder, patch_language = interpreter.InterpreterBuilder, interpreter._patch_lang
    dot, cast = builder.create_dot, builder.cast_impl
    patched = set()

    def exact_dot(self, left, right, *rest):
        # The interpreter stores bfloat16 as raw bits and would multiply those.
        operands = [
            self.create_fp_ext(each, tl.float32) if each.dtype.scalar == tl.bfloat16 else each
            for each in (left, right)
        ]
        return dot(self, *operands, *rest)

    def rounding_cast(self, source, target):
        # The interpreter would truncate; a GPU rounds to nearest.
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            rounded = torch.from_numpy(source.data.copy()).bfloat16().view(torch.uint16).numpy()
            return interpreter.TensorHandle(rounded, target.scalar)
        return cast(self, source, target)

    def patch_once(function):
        if id(function.__globals__) not in patched:
            patched.add(id(function.__globals__))
            patch_language(function)
        return interpreter._LangPatchScope()

    patch.setattr(builder, "create_dot", exact_dot)
    patch.setattr(builder, "cast_impl", rounding_cast)
    patch.setattr(interpreter, "_patch_lang", patch_once)


@pytest.mark.parametrize(
    ("dtype", "size", "head_dim"),
    [
        (torch.float32, (1, 1), 16),
        (torch.float32, (1, 7), 24),
        (torch.float32, (33, 1), 64),
        (torch.float32, (7, 33), 32),
        (torch.float32, (70, 2), 4),
        (torch.bfloat16, (7, 33), 32),
        (torch.bfloat16, (1, 7), 48),
        (torch.float16, (33, 7), 16),
    ],
    ids=str,
)
def test_fused_is_as_accurate_as_the_reference(
    dtype: torch.dtype, size: tuple[int, int], head_dim: int
) -> None:
    inputs = [tensor.to(dtype).double() for tensor in tensors((1, 1, *size, head_dim))]
    exact = outputs_and_gradients("reference", inputs, torch.float64)
    reference = outputs_and_gradients("reference", inputs, dtype)
    fast = outputs_and_gradients("fused", inputs, dtype, DEVICE)
    for name, ours, theirs, truth in zip(("out", "dq", "dk", "dv"), fast, reference, exact, strict=True):
        ours_error, theirs_error = ((each.double() - truth).square().mean().sqrt() for each in (ours, theirs))
        assert ours_error <= 2 * theirs_error + 2e-6, f"{name}: {ours_error:.1e} against {theirs_error:.1e}"


def test_batch_and_heads_are_independent() -> None:
    inputs = tensors((2, 3, 2, 3, 16))
    exact = outputs_and_gradients("reference", inputs, torch.float64)
    for ours, truth in zip(outputs_and_gradients("fused", inputs, torch.float32, DEVICE), exact, strict=True):
        torch.testing.assert_close(ours.double(), truth, atol=1e-5, rtol=1e-4)


def test_a_position_counts_itself_once() -> None:
    value = torch.zeros(1, 1, 3, 4, 16, device=DEVICE)
    value[:, :, 1, 2] = 1
    out = criss_cross_attention(*[torch.zeros_like(value)] * 2, value, backend="fused")
    expected = torch.zeros(3, 4, device=DEVICE)
    expected[1, :] = expected[:, 2] = 1 / (3 + 4 - 1)
    torch.testing.assert_close(out[0, 0], expected[..., None].expand(3, 4, 16))


def test_large_scores_do_not_overflow() -> None:
    query, key, value, gradient = tensors((1, 1, 9, 5, 16))
    inputs = [40 * query, 40 * key, value, gradient]
    exact = outputs_and_gradients("reference", inputs, torch.float64)
    for ours, truth in zip(outputs_and_gradients("fused", inputs, torch.float32, DEVICE), exact, strict=True):
        torch.testing.assert_close(ours.double(), truth, atol=2e-2, rtol=1e-3)


def surround_with_nan(tensor: Tensor) -> Tensor:
    """Copy a tensor into a larger one of NaN, and return the token-major view of the copy."""
    batch, heads, height, width, head_dim = tensor.shape
    larger = tensor.new_full((batch, height + 2, width + 2, heads + 2, head_dim + 8), float("nan"))
    view = larger[:, 1:-1, 1:-1, 1:-1, :head_dim].permute(0, 3, 1, 2, 4)
    return view.copy_(tensor)


def test_nothing_outside_the_tensors_is_read_and_nothing_is_copied() -> None:
    clean = [tensor.to(DEVICE) for tensor in tensors((1, 1, 3, 18, 24), dtype=torch.float32)]
    views = [surround_with_nan(tensor) for tensor in clean]
    assert all(fused._dense(tensor) is tensor for tensor in views)

    def everything(query: Tensor, key: Tensor, value: Tensor, gradient: Tensor) -> list[Tensor]:
        out, lse = fused._fused_criss_cross(query, key, value, 0.25)
        return [out, *fused._fused_criss_cross_backward(gradient, query, key, value, out, lse, 0.25)]

    expected = everything(*clean)
    torch.use_deterministic_algorithms(True)  # PyTorch then fills new memory with NaN
    try:
        found = everything(*views)
    finally:
        torch.use_deterministic_algorithms(False)
    for ours, truth in zip(found, expected, strict=True):
        assert torch.equal(ours, truth)
        assert ours.permute(0, 2, 3, 1, 4).is_contiguous()  # token-major, for the next linear layer


def test_any_strides() -> None:
    inputs = [tensor.to(DEVICE) for tensor in tensors((2, 2, 3, 4, 16), dtype=torch.float32)[:3]]
    expected = criss_cross_attention(*inputs, backend="fused")
    strided = [tensor.permute(4, 2, 0, 3, 1).contiguous().permute(2, 4, 1, 3, 0) for tensor in inputs]
    assert all(tensor.stride(-1) != 1 for tensor in strided)
    assert torch.equal(criss_cross_attention(*strided, backend="fused"), expected)


def test_offsets_beyond_32_bits() -> None:
    # Rows are 2^30 elements apart, so the third has the offset 2^31. Untouched memory is never allocated.
    shape, strides = (1, 1, 3, 2, 16), (0, 0, 2**30, 64, 1)
    storage = torch.empty(2**31 + 128, dtype=torch.float16, device=DEVICE)
    near = [tensor.to(DEVICE) for tensor in tensors(shape, dtype=torch.float16)]
    far = [
        storage.as_strided(shape, strides, offset).copy_(near[i]) for i, offset in enumerate((0, 16, 32, 48))
    ]
    out, lse = fused._fused_criss_cross(*near[:3], 0.25)
    far_out, _ = fused._fused_criss_cross(*far[:3], 0.25)
    assert torch.equal(far_out, out)
    expected = fused._fused_criss_cross_backward(near[3], *near[:3], out, lse, 0.25)
    found = fused._fused_criss_cross_backward(far[3], *far[:3], out, lse, 0.25)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_two_runs_are_bit_identical() -> None:
    inputs = tensors((1, 1, 3, 34, 16), dtype=torch.float32)
    first, second = (outputs_and_gradients("fused", inputs, torch.float32, DEVICE) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # from opcheck itself
def test_opcheck() -> None:
    query, key, value, _ = (
        tensor.to(DEVICE).requires_grad_() for tensor in tensors((1, 2, 2, 3, 16), dtype=torch.float32)
    )
    opcheck(torch.ops.ccsegformer.fused_criss_cross.default, (query, key, value, 0.25))


def test_compiles_without_graph_breaks() -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return criss_cross_attention(query, key, value).sum()

    leaves = [each.to(DEVICE).requires_grad_() for each in tensors((1, 2, 3, 4, 16), dtype=torch.float32)[:3]]
    expected = torch.autograd.grad(attend(*leaves), leaves)
    compiled = torch.autograd.grad(
        torch.compile(attend, fullgraph=True, backend="aot_eager")(*leaves), leaves
    )
    for ours, truth in zip(compiled, expected, strict=True):
        assert torch.equal(ours, truth)


def test_autocast_follows_pytorchs_attention() -> None:
    query, key, value = (each.to(DEVICE) for each in tensors((1, 1, 2, 3, 16), dtype=torch.float32)[:3])
    halves = query.half(), key.bfloat16().half(), value.half()
    expected = criss_cross_attention(*halves, backend="fused")
    with torch.autocast(DEVICE, torch.float16):
        assert torch.equal(criss_cross_attention(query, key.bfloat16(), value, backend="fused"), expected)
        out, _ = torch.ops.ccsegformer.fused_criss_cross(query, key.bfloat16(), value, 0.25)
    assert torch.equal(out, expected)


def test_fused_is_the_default() -> None:
    inputs = [tensor.to(DEVICE) for tensor in tensors((1, 1, 2, 3, 16), dtype=torch.float32)[:3]]
    assert torch.equal(criss_cross_attention(*inputs), criss_cross_attention(*inputs, backend="fused"))


def test_flops_are_counted() -> None:
    heads, height, width, head_dim = 3, 2, 4, 16
    expected = 2 * 2 * heads * height * width * (height + width) * head_dim
    assert count_flops(Attention(criss_cross=True).to(DEVICE), height, width) == expected
