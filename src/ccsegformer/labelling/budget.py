"""Choose the window for a scene: the fastest that fits into a given memory."""

import re

import torch

from ccsegformer.errors import CCSegformerError
from ccsegformer.labelling.engine import Engine
from ccsegformer.labelling.resize import CHUNK_VALUES, LARGE_CHUNK_VALUES
from ccsegformer.labelling.windows import STEP, default_overlap
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation

MEMORY = "4GB"
"""Default memory."""
SMALLEST_WINDOW = 256
"""Smallest window that is chosen by memory: smaller ones see little."""
FASTEST_WINDOW = {"efficient": 768, "criss_cross": 1024, "none": 1024}
"""Fastest window on a CPU by the attention of stage 1, measured by `benchmarks.engines`: larger windows
overlap less, but take longer for each pixel."""
LARGEST_WINDOW = 2048
"""Largest window that is chosen elsewhere: larger ones are far from what models are trained on."""
FOREIGN_WINDOW = 512
"""Window for networks whose memory is unknown."""

GRAPH_CHUNKS, SMALLEST_CHUNKS, VALUES_A_WEIGHT = 32, 16 * 2**20, 8
"""The OpenVINO engine keeps 1/32 of a wide map, or a few chunks of 4 MiB, and one copy of the weights for
each chunk, an eighth of the map; see `labelling/_graph.py`."""

BASE = 1050 * 2**20
"""Memory of a process before it sees a window: Python, PyTorch, transformers, GDAL and their caches."""


def choose_window(
    engine: Engine,
    window: int | None,
    overlap: int | None,
    memory: int | str,
    dtype: str = "uint8",
) -> tuple[int, int]:
    """Choose window and overlap, in pixels, where they are not given; `dtype` is the scene's.

    Raises:
        CCSegformerError: a memory that is too small or no amount, a window below 32, or an overlap of more
            than half the window.
    """
    budget = parse_memory(memory)
    if window is None and engine.fixed_size is not None:
        window = min(engine.fixed_size)
    if window is None and engine.config is None:
        window = FOREIGN_WINDOW
    if window is None and engine.config is not None:
        on_cpu, in_chunks = engine.device.type == "cpu", engine.name == "openvino"
        window = window_for_memory(engine.config, budget, on_cpu=on_cpu, in_chunks=in_chunks, dtype=dtype)
    assert window is not None
    overlap = default_overlap(window) if overlap is None else overlap
    if window < STEP or not 0 <= overlap <= window // 2:
        raise CCSegformerError(
            f"window {window}, overlap {overlap}: a window has at least {STEP} pixels a side, and an overlap "
            "at most half of them"
        )
    return window, overlap


def parse_memory(text: str | int) -> int:
    """Parse bytes, or words such as 500MB, 4GB or 1.5 GiB.

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
    *,
    in_chunks: bool = True,
    dtype: str = "uint8",
) -> int:
    """Estimate the bytes that a square window takes at most, in float32, beyond `BASE` and `weight_memory`.

    Values are counted for each pixel of the window. An operation on stage 1 keeps several maps of its size,
    C_1 / 16 values each: nine for criss-cross attention and five for others, and three of the wide ones in a
    Mix-FFN; the head keeps four of the decoder's width. Logits are kept four times. A test holds the sum to
    measured peaks of the OpenVINO engine.

    Args:
        config: configuration of the model.
        window: side of the window in pixels.
        in_chunks: whether wide maps are computed a few rows at a time, as in the OpenVINO engine.
        dtype: dtype of the scene.
    """
    pixels = window**2
    copies = 5 if {"efficient", "none"}.issuperset(config.stage_attention) else 9
    maps = copies * config.hidden_sizes[0] / 16
    maps += sum(width / 4 ** (stage + 2) for stage, width in enumerate(config.hidden_sizes))
    logits = 4 * config.num_labels / 16
    inner = [width * ratio for width, ratio in zip(config.hidden_sizes, config.mlp_ratios, strict=False)]
    wide = pixels * max(3 * inner[0], 4 * config.decoder_hidden_size) / 16
    if in_chunks:
        wide = max(wide / GRAPH_CHUNKS, SMALLEST_CHUNKS)
        per_block = zip(config.depths, inner, strict=False)
        weighed = sum(depth * width / 4 ** (stage + 2) for stage, (depth, width) in enumerate(per_block))
        wide += pixels * (weighed + config.decoder_hidden_size / 16) / VALUES_A_WEIGHT
    # One window in use, one read ahead and one being read, float32 unless 8 bits; and the network's input.
    image = (3 * (1 if dtype == "uint8" else 4) + 11) / 4 * config.num_channels
    return int(4 * (pixels * (maps + logits + image) + wide + 8 * CHUNK_VALUES))


def weight_memory(config: CrissCrossSegformerConfig) -> int:
    """Estimate the bytes for opening an engine: five copies of the weights while a graph is compiled."""
    with torch.device("meta"):
        model = CrissCrossSegformerForSemanticSegmentation(config)
    return 5 * 4 * sum(parameter.numel() for parameter in model.parameters())


def window_for_memory(
    config: CrissCrossSegformerConfig,
    memory: int,
    *,
    on_cpu: bool = True,
    in_chunks: bool = True,
    dtype: str = "uint8",
) -> int:
    """Choose the fastest window that fits, in pixels a side and a multiple of 32.

    Args:
        config: configuration of the model.
        memory: bytes for the whole process on a CPU; elsewhere for everything on the device but the weights.
        on_cpu: whether the model is on the CPU.
        in_chunks: see `window_memory`.
        dtype: dtype of the scene.

    Raises:
        CCSegformerError: not even a window of `SMALLEST_WINDOW` fits.
    """

    base = BASE + weight_memory(config) if on_cpu else 4 * 4 * LARGE_CHUNK_VALUES

    def needed(window: int) -> int:
        return base + window_memory(config, window, in_chunks=in_chunks, dtype=dtype)

    fastest = FASTEST_WINDOW.get(config.stage_attention[0], min(FASTEST_WINDOW.values()))
    for window in range(fastest if on_cpu else LARGEST_WINDOW, SMALLEST_WINDOW - 1, -STEP):
        if needed(window) <= memory:
            return window
    raise CCSegformerError(
        f"memory {memory / 1e6:.0f} MB is too little: the smallest window, {SMALLEST_WINDOW} pixels a side, "
        f"takes {needed(SMALLEST_WINDOW) / 1e6:.0f} MB with the program"
    )
