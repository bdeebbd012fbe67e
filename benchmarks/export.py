"""Time and memory of exported files beside PyTorch's: `python -m benchmarks.export [SIDE ...]`.

SegFormer-B0 with 150 classes and random weights (seed 0), one square image, one thread of the CPU. Each
figure comes from a fresh process: the fastest of five passes after a first one, and the resident memory
that the first one needs, a 64 x 64 image having gone before. Logits that differ from PyTorch's are not timed.
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
from onnxscript import FLOAT, script
from onnxscript import opset18 as op
from onnxscript.values import Opset

from ccsegformer.evaluation.cost import MEBIBYTE
from ccsegformer.evaluation.memory import free_at_once, peak_memory
from ccsegformer.inference import export as exporting
from ccsegformer.inference._onnx import to_onnx
from ccsegformer.inference.predictor import load_model
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation

Array = NDArray[np.float32]
SIDES = (512, 1024)
PASSES = 5


@script(Opset("benchmarks", 1), default_opset=op)
def textbook(query: FLOAT[...], key: FLOAT[...], value: FLOAT[...], scale: float) -> FLOAT[...]:
    """Criss-cross attention by its definition: stores all N x (H + W) scores."""
    height, width = op.Shape(query, start=2, end=3), op.Shape(query, start=3, end=4)
    scaled = query * op.Constant(value_float=scale)
    row = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 2, 4, 3]))
    column = op.MatMul(op.Transpose(scaled, perm=[0, 1, 3, 2, 4]), op.Transpose(key, perm=[0, 1, 3, 4, 2]))
    itself = op.EyeLike(op.ConstantOfShape(op.Concat(height, height, axis=0))) > 0.0
    column = op.Where(itself, op.Constant(value_float=-1e30), column)
    weights = op.Softmax(op.Concat(row, op.Transpose(column, perm=[0, 1, 3, 2, 4]), axis=-1), axis=-1)
    of_row, of_column = op.Split(weights, op.Concat(width, height, axis=0), axis=-1)
    columns = op.MatMul(
        op.Transpose(of_column, perm=[0, 1, 3, 2, 4]), op.Transpose(value, perm=[0, 1, 3, 2, 4])
    )
    return op.MatMul(of_row, value) + op.Transpose(columns, perm=[0, 1, 3, 2, 4])


def main(sides: list[int]) -> None:
    """Print one Markdown table."""
    with tempfile.TemporaryDirectory() as folder:
        files = _write_files(Path(folder))
        print("| | " + " | ".join(f"{side} x {side}" for side in sides) + " |")
        print("|---" * (1 + len(sides)) + "|")
        for name, path in files.items():
            cells = [_measure_apart(path, side) for side in sides]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def _write_files(folder: Path) -> dict[str, Path]:
    """A model, and its exports, for each attention; by the name that the table gives them."""
    files = {}
    for attention in ("criss_cross", "efficient"):
        config = CrissCrossSegformerConfig.mit("b0", num_labels=150, attention=attention)
        torch.manual_seed(0)
        name, saved = attention.replace("_", "-"), folder / attention
        CrissCrossSegformerForSemanticSegmentation(config).save_pretrained(saved)
        model, classes = load_model(saved, device="cpu")
        files[f"{name}, PyTorch"] = saved
        for format in ("pt2", "onnx"):
            files[f"{name}, {format}"] = saved.with_suffix(f".{format}")
            exporting.export(model, classes, saved.with_suffix(f".{format}"), format)
        if attention == "criss_cross":
            program = exporting._trace(exporting._Logits(model), exporting.smallest_side(config))
            files[f"{name}, onnx by the definition"] = folder / "criss_cross.definition.onnx"
            files[f"{name}, onnx by the definition"].write_bytes(to_onnx(program, {}, textbook))
    return files


def _measure_apart(path: Path, side: int) -> str:
    command = [sys.executable, "-m", "benchmarks.export", "--measure", str(path), str(side)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, mebibytes = json.loads(done.stdout.splitlines()[-1])
    return f"{seconds:.2f} s, {mebibytes:.0f} MiB"


def _measure(path: Path, side: int) -> tuple[float, float]:
    """Seconds of a pass, and MiB that the first one adds."""
    torch.set_num_threads(1)
    run = _load(path)
    pixels = np.random.default_rng(0).standard_normal((1, 3, side, side), dtype=np.float32)
    run(np.ascontiguousarray(pixels[..., :64, :64]))  # loads libraries, which are not the model's memory
    results: list[Array] = []
    free_at_once()
    peak = peak_memory(lambda: results.append(run(pixels)), "cpu")
    [logits] = results
    truth = path.with_name(f"{path.name.partition('.')[0]}.{side}.npy")
    if path.is_dir():
        np.save(truth, logits)
    expected = np.load(truth)
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    if not difference < exporting.TOLERANCE:
        sys.exit(f"{path.name} at {side} x {side} differs from PyTorch by {difference:.1e}")
    return min(_seconds(run, pixels) for _ in range(PASSES)), peak / MEBIBYTE


def _load(path: Path) -> Callable[[Array], Array]:
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda pixels: session.run(None, {"pixel_values": pixels})[0]
    model: Callable[[torch.Tensor], torch.Tensor]
    if path.suffix == ".pt2":
        model = torch.export.load(path).module()
    else:
        loaded, _ = load_model(path, device="cpu")
        model = lambda pixels: loaded(pixels).logits  # noqa: E731
    return torch.inference_mode()(lambda pixels: model(torch.from_numpy(pixels)).numpy())


def _seconds(run: Callable[[Array], Array], pixels: Array) -> float:
    start = time.perf_counter()
    run(pixels)
    return time.perf_counter() - start


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(_measure(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        main([int(side) for side in sys.argv[1:]] or list(SIDES))
