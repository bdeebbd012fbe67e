import subprocess
import sys

import pytest
import torch

from ccsegformer.errors import CCSegformerError
from ccsegformer.labelling.budget import (
    BASE,
    FASTEST_WINDOW,
    LARGEST_WINDOW,
    SMALLEST_WINDOW,
    choose_window,
    parse_memory,
    weight_memory,
    window_for_memory,
    window_memory,
)
from ccsegformer.labelling.engine import Engine
from ccsegformer.labelling.windows import STEP
from ccsegformer.models import CrissCrossSegformerConfig

SIMPLE = Engine("torch", torch.device("cpu"), "fp32", lambda pixels: pixels, digest=None)
MEASURE = """
import multiprocessing, sys, numpy as np, torch
from ccsegformer.lab.memory import free_at_once, peak_memory
from ccsegformer.raster.read import fill_gaps
from ccsegformer.data.pixels import BandStatistics, normalize
from ccsegformer.labelling.windows import compute_part, default_overlap, label_block, spans
from ccsegformer.labelling.engine import open_engine
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation
torch.set_num_threads(1)
def measure(case):
    size, attention, classes, side, bands, dtype = case.split("-")
    shape = {"num_labels": int(classes), "num_channels": int(bands)}
    config = CrissCrossSegformerConfig.mit(size, attention=attention, **shape)
    statistics = BandStatistics((1.0,) * int(bands), (2.0,) * int(bands))
    model = CrissCrossSegformerForSemanticSegmentation(config).eval()
    engine = open_engine(model)
    assert engine.name == "openvino"
    def run(window):
        rows = spans(3 * window, window, default_overlap(window))[1]
        valid = np.arange(window**2).reshape(window, window) > 9
        ahead, image = (fill_gaps(np.ones((int(bands), window, window), dtype), valid) for _ in range(2))
        part = compute_part(engine, normalize(torch.from_numpy(image), statistics), rows, rows, "w")
        above = part.tail(torch.clone)
        return label_block(part, None, None, None), above
    run(64)
    free_at_once()
    print(peak_memory(lambda: run(int(side)), "cpu"), flush=True)
# Each in a process without a past: memory that an earlier case freed would be used again, or given back late.
for case in sys.argv[1:]:
    process = multiprocessing.get_context("fork").Process(target=measure, args=(case,))
    process.start()
    process.join()
"""


def test_measured_peaks_stay_within_the_formula():
    cases = [
        "b2-criss_cross-2-1024-3-uint8",
        "b0-criss_cross-150-1024-3-uint8",
        "b2-criss_cross-2-320-3-uint8",
        "b0-efficient-2-512-3-uint8",
        "b0-efficient-2-512-60-float32",
        "b0-criss_cross-150-384-3-uint8",
        "b2-efficient-20-320-3-uint8",
    ]
    done = subprocess.run([sys.executable, "-c", MEASURE, *cases], capture_output=True, text=True, check=True)
    for case, measured in zip(cases, map(int, done.stdout.split()), strict=True):
        size, attention, classes, side, bands, dtype = case.split("-")
        shape = {"num_labels": int(classes), "num_channels": int(bands)}
        config = CrissCrossSegformerConfig.mit(size, attention=attention, **shape)
        predicted = weight_memory(config)
        predicted += window_memory(config, int(side), dtype=dtype)
        assert predicted / 4 < measured < predicted, (
            f"{case}: {measured / 1e6:.0f} of {predicted / 1e6:.0f} MB"
        )


def test_many_bands_of_float32_make_the_window_smaller():
    config = CrissCrossSegformerConfig.mit("b0", num_channels=40)
    windows = [window_for_memory(config, 2 * 10**9, dtype=dtype) for dtype in ("uint8", "float32")]
    assert SMALLEST_WINDOW < windows[1] < windows[0] < LARGEST_WINDOW


@pytest.mark.parametrize("attention", ["criss_cross", "efficient", ["none", *3 * ["efficient"]]])
@pytest.mark.parametrize("memory", ["1.3GB", "1.4GB", "1.5GB", "4GB"])
def test_the_fastest_window_that_fits(memory, attention):
    config = CrissCrossSegformerConfig.mit("b0", num_labels=150, attention=attention)
    fastest = FASTEST_WINDOW[config.stage_attention[0]]
    window = window_for_memory(config, parse_memory(memory))
    assert window % STEP == 0 and SMALLEST_WINDOW <= window <= fastest
    base = BASE + weight_memory(config)
    assert base + window_memory(config, window) <= parse_memory(memory)
    larger = window + STEP
    fits = base + window_memory(config, larger) <= parse_memory(memory)
    assert not fits or window == fastest


def test_what_is_not_in_chunks_makes_the_window_smaller_and_a_device_larger():
    config = CrissCrossSegformerConfig.mit("b0")
    memory = parse_memory("1.4GB")
    assert window_for_memory(config, memory, in_chunks=False) < window_for_memory(config, memory)
    assert window_for_memory(config, 10**10, on_cpu=False, in_chunks=False) == LARGEST_WINDOW


def test_models_of_two_stages_have_a_window():
    config = CrissCrossSegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        hidden_sizes=[8, 16],
        sr_ratios=[2, 1],
        num_attention_heads=[1, 2],
    )
    assert window_for_memory(config, 4 * 10**9) >= SMALLEST_WINDOW


def test_too_little_memory_is_refused():
    with pytest.raises(CCSegformerError, match="memory 500 MB"):
        window_for_memory(CrissCrossSegformerConfig.mit("b0"), 500_000_000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GB", 4 * 10**9), ("1.5 GiB", 3 * 2**29), ("500mb", 5 * 10**8), ("7", 7), (12, 12), ("2k", 2000)],
)
def test_memory_in_words(text, expected):
    assert parse_memory(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1GB", "4 GBit", "1e9", "4GBB"])
def test_memory_that_is_no_amount(text):
    with pytest.raises(CCSegformerError, match="write it as 4GB"):
        parse_memory(text)


def test_a_window_and_an_overlap_outside_the_limits():
    for window, overlap in ((31, 0), (64, 33), (64, -1)):
        with pytest.raises(CCSegformerError, match=f"window {window}, overlap {overlap}: a window has"):
            choose_window(SIMPLE, window, overlap, "4GB")
    assert choose_window(SIMPLE, 64, None, "4GB") == (64, 16)
