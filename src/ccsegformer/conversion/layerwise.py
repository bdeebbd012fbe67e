"""Match each attention's output, block by block.

As the first step of LoLCATs (Zhang et al., https://arxiv.org/abs/2410.10254), but with all weights of the
attention and no adapters. The blocks do not depend on one another: one pass over the images trains them all.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from ccsegformer.conversion.student import attention_blocks, watch
from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation


def match_layers(
    teacher: CrissCrossSegformerForSemanticSegmentation,
    student: CrissCrossSegformerForSemanticSegmentation,
    batches: Iterable[Tensor],
    *,
    steps: int,
    learning_rate: float = 1e-3,
    own_inputs: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Train the student's criss-cross attention to give what the teacher's attention gives.

    Adam minimises the squared error, as a share of the teacher's variance; the learning rate falls to 0.

    Args:
        teacher, student: Models on the same device.
        batches: Normalised pixels (batch, bands, H, W), one batch for each step.
        steps: Number of steps.
        learning_rate: First learning rate.
        own_inputs: Whether both attentions are given the student's inputs instead of the teacher's.
        on_step: Callback taking the number of steps and the mean error over the blocks.
    """
    blocks = attention_blocks(teacher, student)
    weights = [weight for block in blocks for weight in block.student.parameters()]
    optimizer = torch.optim.Adam(weights, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step, pixels in zip(range(1, steps + 1), batches, strict=False):
        source, kind = (student, "student") if own_inputs else (teacher, "teacher")
        seen = watch(source, [getattr(block, kind) for block in blocks], pixels.to(teacher.device))
        total = 0.0
        for block, passed in zip(blocks, seen, strict=True):
            target = passed.output
            if own_inputs:
                with torch.no_grad():
                    target, _ = block.teacher(passed.tokens, passed.height, passed.width)
            output, _ = block.student(passed.tokens, passed.height, passed.width)
            loss = mse_loss(output, target) / target.var().clamp(min=1e-12)
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if on_step is not None:
            on_step(step, total / max(len(blocks), 1))
