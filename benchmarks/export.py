"""Measure time and memory of exported files in each runtime: `python -m benchmarks.export [SIDE ...]`.

SegFormer-B0 with 150 classes and random weights (seed 0), one square image, all cores of the CPU. The
default sides are 512, 1024 and 2048. Prints a Markdown table. Each figure comes from a fresh process: the
fastest of five passes after a first one, and the resident memory that the first pass adds to the loaded
model. OpenVINO compiles for the fixed image size. Logits that differ from PyTorch's are an error.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ccsegformer.export import export
from ccsegformer.lab.cost import MEBIBYTE
from ccsegformer.lab.memory import free_at_once, peak_memory
from ccsegformer.labelling.loading import load_model
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation
from ccsegformer.report.machine import describe_machine

Array = NDArray[np.float32]
Run = Callable[[Array], Array]
SIDES = (512, 1024, 2048)
PASSES = 5
RUNTIMES = {  # name of the row: runtime and suffix of the file; PyTorch is the reference
    "PyTorch": ("torch", ""),
    "pt2 in PyTorch": ("pt2", ".pt2"),
    "ONNX in ONNX Runtime": ("onnxruntime", ".onnx"),
    "ONNX in OpenVINO, float32": ("openvino-f32", ".onnx"),
    "ONNX in OpenVINO, bfloat16": ("openvino-bf16", ".onnx"),
}
TOLERANCE = {"openvino-bf16": 0.05}
"""Largest difference allowed, as a share of the largest logit; 0.001 for the other runtimes."""


def main(sides: list[int]) -> None:
    """Print the Markdown table."""
    machine = describe_machine()
    print(f"{machine['processor']}, {machine['threads']} threads, PyTorch {machine['torch']}\n")
    print("| | " + " | ".join(f"{side} x {side}" for side in sides) + " |")
    print("|---" * (1 + len(sides)) + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for attention in ("efficient", "criss_cross"):
            saved = _write_files(Path(folder), attention)
            for name, (runtime, suffix) in RUNTIMES.items():
                cells = [_measure_apart(runtime, saved.with_suffix(suffix), side) for side in sides]
                row = [f"{attention.replace('_', '-')}, {name}", *cells]
                print("| " + " | ".join(row) + " |", flush=True)


def _write_files(folder: Path, attention: str) -> Path:
    """Save a model to a folder and its exports next to it; return the folder."""
    config = CrissCrossSegformerConfig.mit("b0", num_labels=150, attention=attention)
    torch.manual_seed(0)
    saved = folder / attention
    CrissCrossSegformerForSemanticSegmentation(config).save_pretrained(saved)
    model, classes = load_model(saved, device="cpu")
    export(model, classes, saved.with_suffix(".pt2"), "pt2")
    export(model, classes, saved.with_suffix(".onnx"), "onnx")
    return saved


def _measure_apart(runtime: str, path: Path, side: int) -> str:
    command = [sys.executable, "-m", "benchmarks.export", "--measure", runtime, str(path), str(side)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == -9:
        return "out of memory"
    done.check_returncode()
    seconds, mebibytes = json.loads(done.stdout.splitlines()[-1])
    return f"{seconds:.3f} s, {mebibytes:.0f} MiB"


def _measure(runtime: str, path: Path, side: int) -> tuple[float, float]:
    """Return the seconds of a pass and the MiB that the first pass adds."""
    run = _load(runtime, path, side)
    pixels = np.random.default_rng(0).standard_normal((1, 3, side, side), dtype=np.float32)
    if not runtime.startswith("openvino"):
        run(
            np.ascontiguousarray(pixels[..., :64, :64])
        )  # load libraries, so that they do not count as the model's memory
    results: list[Array] = []
    free_at_once()
    peak = peak_memory(lambda: results.append(run(pixels)), "cpu")
    [logits] = results
    truth = path.with_name(f"{path.stem}.{side}.npy")
    if runtime == "torch":
        np.save(truth, logits)
    expected = np.load(truth)
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    if not difference < TOLERANCE.get(runtime, 0.001):
        sys.exit(f"{runtime}, {path.name} at {side} x {side} differs from PyTorch by {difference:.1e}")
    return min(_seconds(run, pixels) for _ in range(PASSES)), peak / MEBIBYTE


def _load(runtime: str, path: Path, side: int) -> Run:
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda pixels: session.run(None, {"pixel_values": pixels})[0]
    if runtime.startswith("openvino"):
        return _load_openvino(path, side, runtime.removeprefix("openvino-"))
    model: Callable[[torch.Tensor], torch.Tensor]
    if runtime == "pt2":
        model = torch.export.load(path).module()
    else:
        loaded, _ = load_model(path, device="cpu")
        model = lambda pixels: loaded(pixels).logits  # noqa: E731
    return torch.inference_mode()(lambda pixels: model(torch.from_numpy(pixels)).numpy())


def _load_openvino(path: Path, side: int, precision: str) -> Run:
    import openvino

    core = openvino.Core()
    graph = core.read_model(path)
    graph.reshape([1, 3, side, side])
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = core.compile_model(graph, "CPU", options)
    return lambda pixels: compiled(pixels)[0].copy()


def _seconds(run: Run, pixels: Array) -> float:
    start = time.perf_counter()
    run(pixels)
    return time.perf_counter() - start


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(_measure(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))))
    else:
        main([int(side) for side in sys.argv[1:]] or list(SIDES))
