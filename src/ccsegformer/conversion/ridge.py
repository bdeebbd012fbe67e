"""The second start: values, output and LePE fitted in closed form, with the attention's weights as they are.

With fixed queries and keys, criss-cross attention is linear in its values: its output is the sum over the
heads of A_h x M_h, where A_h are the head's weights, x is the input and M_h = Wv_h Wo_h. The matrices M_h
that come closest to the teacher's output follow from ridge regression, and the nearest ones of rank head_dim
from a singular value decomposition in the features' own metric. LePE and the output projection are then
fitted in turn. Only Gram matrices are kept, so memory does not depend on the number of images.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from ccsegformer.conversion.moments import Moments, penalised, solve_ridge
from ccsegformer.conversion.student import Block, Passed, attention_blocks, watch
from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation
from ccsegformer.models.attention.criss_cross import CrissCrossAttention
from ccsegformer.ops import criss_cross_attention

PENALTY = 0.1
"""Ridge penalty, as a share of the features' mean variance.

Neighbouring positions say much the same. A small penalty gives large weights, which fit less well on other
images and which distillation hardly improves.
"""
POSITIONS = 2048
"""Positions of an image, at most, that enter the regression of a block."""
GRAM_BYTES = 2**30
"""Memory for Gram matrices. Blocks that need more together are fitted one group after another."""
ROUNDS = 3
TAPS = 9  # of LePE

Regressors = Callable[[CrissCrossAttention, Passed], Tensor]


@torch.no_grad()
def fit_ridge(
    teacher: CrissCrossSegformerForSemanticSegmentation,
    student: CrissCrossSegformerForSemanticSegmentation,
    images: Iterable[Tensor],
    *,
    seed: int = 0,
) -> None:
    """Fit values, LePE and output of the student's criss-cross attention to the teacher's outputs.

    Args:
        teacher, student: Models on the same device; the student after `fold`.
        images: Normalised pixels (batch, bands, H, W), read twice, more often for large models.
        seed: Seed of the positions that enter the regression.
    """
    for blocks in _groups(attention_blocks(teacher, student)):
        for block, moments in _measured(teacher, blocks, images, _attended_inputs, seed):
            _set_value_and_output(block.student, moments)
        for block, moments in _measured(teacher, blocks, images, _attended_values, seed):
            _set_lepe_and_output(block.student, moments)


@torch.no_grad()
def attention_errors(
    teacher: CrissCrossSegformerForSemanticSegmentation,
    student: CrissCrossSegformerForSemanticSegmentation,
    images: Iterable[Tensor],
) -> dict[str, float]:
    """Return the squared error of each attention on the teacher's inputs, as a share of the variance.

    The variance is that of the teacher's output, over positions and images, summed over the channels.
    """
    errors: dict[str, float] = {}
    blocks = attention_blocks(teacher, student)
    for block, moments in _measured(teacher, blocks, images, _outputs, seed=0):
        width = len(moments.mean) // 2
        covariance, mean = moments.covariance(), moments.mean
        own, other = covariance[:width, :width], covariance[width:, width:]
        spread = own.trace() + other.trace() - 2 * covariance[:width, width:].trace()
        error = spread + (mean[:width] - mean[width:]).square().sum()
        errors[block.name] = float(error / other.trace().clamp(min=1e-12))
    return errors


def keep_better(
    teacher: CrissCrossSegformerForSemanticSegmentation,
    student: CrissCrossSegformerForSemanticSegmentation,
    other: CrissCrossSegformerForSemanticSegmentation,
    images: Iterable[Tensor],
) -> list[str]:
    """Give each attention of the student the other's weights where these err less, and return those blocks.

    Args:
        teacher: The model to follow.
        student, other: Models of the same network, such as before and after a fit.
        images: Normalised pixels (batch, bands, H, W) that the fit did not see.
    """
    own, others = (attention_errors(teacher, model, images) for model in (student, other))
    pairs = zip(attention_blocks(teacher, student), attention_blocks(teacher, other), strict=True)
    taken = []
    for block, rival in pairs:
        if others[block.name] < own[block.name]:
            block.student.load_state_dict(rival.student.state_dict())
            taken.append(block.name)
    return taken


def _groups(blocks: list[Block]) -> Iterator[list[Block]]:
    """Split the blocks so that the Gram matrices of a group fit in `GRAM_BYTES`."""
    group, used = list[Block](), 0
    for block in blocks:
        channels = block.student.q_proj.in_features
        need = 8 * ((max(TAPS + 1, block.student.num_heads) + 1) * channels) ** 2
        if group and used + need > GRAM_BYTES:
            yield group
            group, used = [], 0
        group, used = [*group, block], used + need
    if group:
        yield group


def _measured(
    teacher: CrissCrossSegformerForSemanticSegmentation,
    blocks: list[Block],
    images: Iterable[Tensor],
    features: Regressors,
    seed: int,
) -> Iterator[tuple[Block, Moments]]:
    """Yield each block with the moments of its features and, in the last columns, of the teacher's output."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Moments | None] = [None] * len(blocks)
    for pixels in images:
        seen = watch(teacher, [block.teacher for block in blocks], pixels.to(teacher.device))
        for index, (block, passed) in enumerate(zip(blocks, seen, strict=True)):
            rows = torch.cat([features(block.student, passed), passed.output.flatten(0, 1)], dim=1)
            moments = found[index] or Moments(rows.shape[1], rows.device)
            chosen = torch.randperm(len(rows), generator=generator)[: POSITIONS * len(pixels)]
            moments.add(rows[chosen.to(rows.device)])
            found[index] = moments
    for block, measured in zip(blocks, found, strict=True):
        assert measured is not None, "there are images"
        yield block, measured


def _heads(attention: CrissCrossAttention, passed: Passed, projection: nn.Module) -> Tensor:
    """Project tokens to (batch, heads, height, width, head_dim)."""
    grid = projection(passed.tokens).unflatten(1, (passed.height, passed.width))
    return grid.unflatten(3, (attention.num_heads, -1)).permute(0, 3, 1, 2, 4)


def _outputs(attention: CrissCrossAttention, passed: Passed) -> Tensor:
    """Return the attention's output: (positions, C)."""
    output: Tensor = attention(passed.tokens, passed.height, passed.width)[0]
    return output.flatten(0, 1)


def _attended_inputs(attention: CrissCrossAttention, passed: Passed) -> Tensor:
    """Return A_h x for all heads: (positions, heads * C)."""
    query, key = (_heads(attention, passed, of) for of in (attention.q_proj, attention.k_proj))
    inputs = passed.tokens.unflatten(1, (passed.height, passed.width))[:, None]
    value = inputs.expand(-1, attention.num_heads, -1, -1, -1)
    attended = criss_cross_attention(query, key, value.contiguous())
    return attended.permute(0, 2, 3, 1, 4).flatten(3).flatten(0, 2)


def _attended_values(attention: CrissCrossAttention, passed: Passed) -> Tensor:
    """Return the attended values and the values under each tap of LePE: (positions, C + 9 C)."""
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    attended = criss_cross_attention(*(_heads(attention, passed, of) for of in projections))
    attended = attended.permute(0, 2, 3, 1, 4).flatten(3).flatten(0, 2)
    grid = attention.v_proj(passed.tokens).unflatten(1, (passed.height, passed.width))
    under = unfold(grid.permute(0, 3, 1, 2), 3, padding=1).unflatten(1, (-1, TAPS))
    return torch.cat([attended, under.permute(0, 3, 2, 1).flatten(2).flatten(0, 1)], dim=1)


def _set_value_and_output(attention: CrissCrossAttention, moments: Moments) -> None:
    """Set the value and output projections to the best ones of rank head_dim for each head."""
    channels = attention.q_proj.in_features
    width, rank = attention.num_heads * channels, channels // attention.num_heads
    covariance, mean = moments.covariance(), moments.mean
    wanted = solve_ridge(covariance[:width, :width], covariance[:width, width:], PENALTY)
    values, outputs, biases = [], [], []
    for head in range(attention.num_heads):
        own = slice(head * channels, (head + 1) * channels)
        value, output = _low_rank(covariance[own, own], wanted[own], rank)
        values.append(value.T)
        outputs.append(output.T)
        biases.append(-value.T @ mean[own])
    _set(attention.v_proj, torch.cat(values), torch.cat(biases))
    _set(attention.o_proj, torch.cat(outputs, dim=1), mean[width:])


def _set_lepe_and_output(attention: CrissCrossAttention, moments: Moments) -> None:
    """Set LePE's weights and the output projection, each in turn to the best for the other."""
    channels = attention.q_proj.in_features
    covariance, mean = moments.covariance(), moments.mean
    attended, under, target = slice(0, channels), slice(channels, -channels), slice(-channels, None)
    output = attention.o_proj.weight.double()
    join = torch.eye(channels, dtype=torch.float64, device=output.device)
    taps = output.new_zeros(TAPS, channels)
    for _ in range(ROUNDS):
        if attention.lepe is not None:
            rest = covariance[under, target] - covariance[under, attended] @ output.T
            wanted = (rest @ output).unflatten(0, (TAPS, channels)).diagonal(dim1=1, dim2=2)
            normal = covariance[under, under] * (output.T @ output).repeat(TAPS, TAPS)
            taps = solve_ridge(normal, wanted.flatten()[:, None], PENALTY).view(TAPS, channels)
        mixed = torch.cat([join, *(torch.diag(tap) for tap in taps)])
        gram = mixed.T @ covariance[:-channels, :-channels] @ mixed
        output = solve_ridge(gram, mixed.T @ covariance[:-channels, target], PENALTY).T
    _set(attention.o_proj, output, mean[target] - output @ (mixed.T @ mean[:-channels]))
    if attention.lepe is not None:
        _set(attention.lepe, taps.T.reshape(channels, 1, 3, 3), torch.zeros(channels))


def _low_rank(gram: Tensor, matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors (C, rank) and (rank, C) nearest to a matrix, in the metric of the features' Gram."""
    root = torch.linalg.cholesky(penalised(gram, PENALTY))
    left, sizes, right = torch.linalg.svd(root.T @ matrix)
    scale = sizes[:rank].sqrt()
    first = torch.linalg.solve_triangular(root.T, left[:, :rank] * scale, upper=True)
    return first, scale[:, None] * right[:rank]


def _set(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    assert layer.bias is not None
    layer.bias.copy_(bias)
