"""Which window to take for a scene: the fastest that fits into a given memory."""

import re

import torch

from ccsegformer.errors import CCSegformerError
from ccsegformer.labelling.engine import Engine
from ccsegformer.labelling.resize import BAND_VALUES, LARGE_BAND_VALUES
from ccsegformer.labelling.tiling import STEP, default_overlap
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation

MEMORY = "4GB"
SMALLEST_WINDOW = 256
"""Of those chosen by memory: smaller ones see little."""
FASTEST_WINDOW = {"efficient": 768, "criss_cross": 1024, "none": 1024}
"""On a CPU, by the attention of stage 1, as `benchmarks.engines` measures it. Larger windows share less with
their neighbours, but take longer for each pixel."""
LARGEST_WINDOW = 2048
"""Elsewhere: larger ones are far from what models are trained on."""

MOST_BANDS, SMALLEST_BANDS, VALUES_A_WEIGHT = 32, 16 * 2**20, 8
"""What bands save, see `labelling/_graph.py`: of a map in bands a 32nd is there, or some of 4 MiB each, and
its bands' copies of the weights have an eighth of its size."""

BASE = 900 * 2**20
"""What a process holds before it sees a window: Python, PyTorch, transformers, GDAL and their caches."""


def choose_window(
    engine: Engine,
    window: int | None,
    overlap: int | None,
    memory: int | str,
    dtype: str = "uint8",
) -> tuple[int, int]:
    """A window and an overlap, in pixels a side: what is given, else by memory and by default.

    `dtype` is that of the scene.

    Raises:
        CCSegformerError: a memory that is too small or no amount, a window below 32, or an overlap of more
            than half the window.
    """
    if window is None:
        on_cpu = engine.device.type == "cpu"
        budget, in_bands = parse_memory(memory), engine.name == "openvino"
        window = window_for_memory(engine.config, budget, on_cpu=on_cpu, in_bands=in_bands, dtype=dtype)
    overlap = default_overlap(window) if overlap is None else overlap
    if window < STEP or not 0 <= overlap <= window // 2:
        raise CCSegformerError(
            f"window {window}, overlap {overlap}: a window has at least {STEP} pixels a side, and an overlap "
            "at most half of them"
        )
    return window, overlap


def parse_memory(text: str | int) -> int:
    """Bytes of a number of them, or of words such as 500MB, 4GB or 1.5 GiB.

    Raises:
        CCSegformerError: neither.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B?)?\s*", str(text), re.IGNORECASE)
    if not found:
        raise CCSegformerError(f"memory {text!r}: write it as 4GB, 500MB or a number of bytes")
    number, unit, binary = found.groups()
    power = " KMGT".index(unit.upper()) if unit else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


def window_memory(
    config: CrissCrossSegformerConfig,
    window: int,
    overlap: int,
    *,
    in_bands: bool = True,
    dtype: str = "uint8",
) -> int:
    """Bytes that a square window takes at most, in float32, beyond `BASE` and `weight_memory`.

    Counted are values for a pixel of the window. An operation on stage 1 keeps several maps of its size,
    C_1 / 16 values each: nine for criss-cross attention and five for others, and of the wide ones in a
    Mix-FFN three; the head keeps four of the decoder's width. Logits are kept three times. A test holds the
    sum to measured peaks of the OpenVINO engine.

    Args:
        config: of the model.
        window, overlap: in pixels a side.
        in_bands: whether wide maps are there a band of rows at a time, as in the OpenVINO engine.
        dtype: of the scene's values.
    """
    pixels = window**2
    copies = 5 if {"efficient", "none"}.issuperset(config.stage_attention) else 9
    maps = copies * config.hidden_sizes[0] / 16
    maps += sum(width / 4 ** (stage + 2) for stage, width in enumerate(config.hidden_sizes))
    logits = 3 * config.num_labels / 16
    inner = [width * ratio for width, ratio in zip(config.hidden_sizes, config.mlp_ratios, strict=True)]
    wide = pixels * max(3 * inner[0], 4 * config.decoder_hidden_size) / 16
    if in_bands:
        wide = max(wide / MOST_BANDS, SMALLEST_BANDS)
        per_block = zip(config.depths, inner, strict=True)
        weighed = sum(depth * width / 4 ** (stage + 2) for stage, (depth, width) in enumerate(per_block))
        wide += pixels * (weighed + config.decoder_hidden_size / 16) / VALUES_A_WEIGHT
    # One window in use, one that is read ahead and is in the making, all but 8 bits as float32; besides, as
    # the network takes it.
    image = (3 * (1 if dtype == "uint8" else 4) + 11) / 4 * config.num_channels
    carried = 6 * config.num_labels * window * overlap  # to the right and below, from there and to there
    return int(4 * (pixels * (maps + logits + image) + wide + carried + 4 * BAND_VALUES))


def weight_memory(config: CrissCrossSegformerConfig) -> int:
    """Bytes that opening an engine takes at most: five copies of the weights while a graph is compiled."""
    with torch.device("meta"):
        model = CrissCrossSegformerForSemanticSegmentation(config)
    return 5 * 4 * sum(parameter.numel() for parameter in model.parameters())


def window_for_memory(
    config: CrissCrossSegformerConfig,
    memory: int,
    *,
    on_cpu: bool = True,
    in_bands: bool = True,
    dtype: str = "uint8",
) -> int:
    """The fastest window that fits, in pixels a side and a multiple of 32.

    Args:
        config: of the model.
        memory: bytes, of the whole process on CPU, elsewhere of what is on the device beside the weights.
        on_cpu: where the model is.
        in_bands: as in `window_memory`.
        dtype: of the scene's values.

    Raises:
        CCSegformerError: not even a window of `SMALLEST_WINDOW` fits.
    """

    base = BASE + weight_memory(config) if on_cpu else 4 * 4 * LARGE_BAND_VALUES

    def needed(window: int) -> int:
        overlap = default_overlap(window)
        return base + window_memory(config, window, overlap, in_bands=in_bands, dtype=dtype)

    best = (
        FASTEST_WINDOW.get(config.stage_attention[0], min(FASTEST_WINDOW.values()))
        if on_cpu
        else LARGEST_WINDOW
    )
    for window in range(best, SMALLEST_WINDOW - 1, -STEP):
        if needed(window) <= memory:
            return window
    raise CCSegformerError(
        f"memory {memory / 1e6:.0f} MB beside the weights: too little; the smallest window, "
        f"{SMALLEST_WINDOW} pixels a side, takes {needed(SMALLEST_WINDOW) / 1e6:.0f} MB with the program"
    )
