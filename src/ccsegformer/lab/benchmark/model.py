"""Prepare whole models for a benchmark: ours and transformers' SegFormer with the same weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SegformerForSemanticSegmentation

from ccsegformer.lab.benchmark.runtimes import open_runtime
from ccsegformer.lab.benchmark.worker import Work
from ccsegformer.lab.cost import count_flops
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation

CLASS_COUNT = 150
CHECKED_IMAGE_SIDE = 256
"""Largest side of the image on which a criss-cross model is checked; the formula needs much memory."""


def prepare(
    *,
    implementation: str,
    variant: str,
    attention: str,
    height: int,
    width: int,
    batch: int,
    dtype: str,
    training: bool,
    device: str,
    channels_last: bool = False,
    compiled: bool = False,
    runtime: str = "eager",
    classes: int = CLASS_COUNT,
) -> Work:
    """Prepare a model with seeded weights on a seeded image.

    Args:
        implementation: "ours" or "transformers".
        variant: Size of SegFormer, "b0" to "b5".
        attention: Attention of every stage.
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
        batch: Number of images.
        dtype: "float32", "float64", "bfloat16" or "float16". With 16 bits, inference casts the model and
            training uses autocast.
        training: Run forward, cross entropy and backward, without dropout, instead of forward only.
        device: Device to run on.
        channels_last: Use the channels-last memory format.
        compiled: Compile with `torch.compile`.
        runtime: "eager" for the module itself, or a runtime of `runtimes.open_runtime`.
        classes: Number of classes.
    """
    torch.manual_seed(0)
    nothing_dropped = {"classifier_dropout_prob": 0.0, "drop_path_rate": 0.0}
    config = CrissCrossSegformerConfig.mit(
        variant, num_labels=classes, attention=attention, **nothing_dropped
    )
    model: nn.Module = CrissCrossSegformerForSemanticSegmentation(config)
    flops = batch * count_flops(model, height, width)
    if implementation == "transformers":
        weights = model.state_dict()
        model = SegformerForSemanticSegmentation._from_config(config, attn_implementation="sdpa")
        model.load_state_dict(weights)
    kind = getattr(torch, dtype)
    casts = runtime == "eager" and (not training or dtype == "float64")
    model = model.to(device, kind if casts else torch.float32).train(training)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(batch, 3, height, width, generator=generator).to(
        device, next(model.parameters()).dtype
    )
    labels = torch.randint(classes, (batch, height, width), generator=generator).to(device)
    amounts = {"matrix product": flops}
    if runtime != "eager":
        opened = open_runtime(model, pixels, runtime, dtype)
        results = lambda: {"logits": opened.run()}  # noqa: E731
        return Work(opened.run, results, amounts, opened.release, opened.on_loaded)
    if channels_last:
        model.to(memory_format=torch.channels_last)
        pixels = pixels.to(memory_format=torch.channels_last)
    call: Callable[..., Any] = torch.compile(model) if compiled else model

    def infer() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = call(pixel_values=pixels).logits
            return logits

    def step() -> Tensor:
        model.zero_grad()
        with torch.autocast(pixels.device.type, kind, enabled=dtype in ("bfloat16", "float16")):
            loss: Tensor = call(pixel_values=pixels, labels=labels).loss
        loss.backward()
        return loss

    def gradients() -> dict[str, Tensor]:
        loss = step().detach()
        flat = [
            parameter.grad.flatten()
            for _, parameter in sorted(model.named_parameters())
            if parameter.grad is not None
        ]
        return {"loss": loss, "gradients": torch.cat(flat).float()}

    if training:  # a backward pass counts as two forward passes
        return Work(step, gradients, {"matrix product": 3 * flops})
    return Work(infer, lambda: {"logits": infer().float()}, amounts)


def truth(specification: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the specification to check results against, possibly on a smaller image, and its description."""
    exact = {**specification, "compiled": False, "channels_last": False, "runtime": "eager"}
    if specification["attention"] == "efficient":
        return {**exact, "implementation": "transformers", "dtype": "float32"}, "transformers, float32"
    side = min(specification["height"], specification["width"], CHECKED_IMAGE_SIDE)
    formula = {**exact, "dtype": "float64", "height": side, "width": side}
    return formula, f"the textbook formula, float64, at {side} x {side}"
