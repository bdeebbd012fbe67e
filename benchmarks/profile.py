"""Profile a model on CPU: `python -m benchmarks.profile [--size 512] [--engine openvino | --training]`.

SegFormer-B0 with 150 classes, one image. Times come from PyTorch's profiler or OpenVINO's counters and are
summed by family of operators. Profiling adds time, most of all to small operators, so the sums are a little
higher than the times that `ccsegformer benchmark model` prints.
"""

import argparse
import os
import tempfile
from collections import defaultdict
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from ccsegformer.lab.benchmark.model import prepare
from ccsegformer.lab.benchmark.runtimes import Running

FAMILIES = {  # an operator belongs to the first family with a part of its name
    "attention": ("attention",),
    "matrix products": ("mm", "linear", "matmul", "einsum", "dot"),
    "convolutions": ("conv",),
    "norms": ("norm",),
    "GELU": ("gelu",),
    "softmax, cross entropy": ("softmax", "logsumexp", "nll", "exp"),
    "resizes": ("upsample",),
    "copies": ("copy", "cat", "clone", "fill", "zero", "index", "gather", "scatter"),
    "sums and products": ("add", "mul", "sub", "div", "sum", "relu", "threshold"),
}
NODES = {  # OpenVINO's node types; products with weights are FullyConnected, of two activations MatMul
    "attention": ("ScaledDotProductAttention", "MatMul", "Softmax"),
    "matrix products": ("FullyConnected",),
    "convolutions": ("Convolution",),
    "copies": ("Reorder", "Transpose", "Concatenation", "Split", "StridedSlice", "Reshape", "Convert"),
    "resizes": ("Interpolate",),
}
MODELS = {
    "transformers": ("transformers", "efficient"),
    "ours, efficient attention": ("ours", "efficient"),
    "ours, criss-cross attention": ("ours", "criss_cross"),
}
ROUNDS = 3


def of_pytorch(wanted: dict[str, Any]) -> dict[str, float]:
    """Return the milliseconds of a PyTorch run by family, operators without their callees, averaged."""
    work = prepare(**wanted)
    work.run()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(ROUNDS):
            work.run()
    spent: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        name = event.key.rpartition("::")[2].lower()
        family = next(
            (family for family, parts in FAMILIES.items() if any(p in name for p in parts)), "others"
        )
        spent[family] += event.self_cpu_time_total / 1000 / ROUNDS
    return spent


def of_openvino(wanted: dict[str, Any]) -> dict[str, float]:
    """Return the milliseconds of an OpenVINO run by family, averaged."""
    import openvino

    running, compile_model = Running(), openvino.Core.compile_model

    def counting(core: Any, model: Any, device: str, config: dict[str, Any]) -> Any:
        return compile_model(core, model, device, {**config, "PERF_COUNT": True})

    with (
        tempfile.TemporaryDirectory() as cache,  # compile again: cached graphs have no counters
        patch.dict(os.environ, XDG_CACHE_HOME=cache),
        patch.object(openvino.Core, "compile_model", counting),
    ):
        work = prepare(**wanted, runtime="openvino")
        for _ in range(ROUNDS):
            work.run()
    spent: dict[str, float] = defaultdict(float)
    for compiled in running.models:
        for node in compiled.get_runtime_model().get_ops():
            info = {name: value.astype(str) for name, value in node.get_rt_info().items()}
            if info["execTimeMcs"] != "not_executed":
                family = family_of_node(info["layerType"], info["originalLayersNames"])
                spent[family] += float(info["execTimeMcs"]) / 1000
    return spent


def family_of_node(kind: str, made_of: str) -> str:
    """Return the family of a node of OpenVINO's compiled graph.

    Args:
        kind: Type of the node.
        made_of: Names of the model's operators that it was made from.
    """
    if kind == "Subgraph" and "softmax" in made_of.lower():
        return "attention"  # a fused one; other subgraphs are sums, products and activations
    return next((family for family, kinds in NODES.items() if kind in kinds), "others")


def main() -> None:
    """Print a table with one column per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side in pixels")
    parser.add_argument("--engine", choices=("torch", "openvino"), default="torch")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--training", action="store_true", help="profile forward and backward instead of inference"
    )
    given = parser.parse_args()
    if given.training and given.engine == "openvino":
        parser.error("--training needs --engine torch: OpenVINO does not train")
    common = {"variant": "b0", "height": given.size, "width": given.size, "batch": 1, "device": "cpu"}
    common |= {"dtype": given.dtype, "training": given.training}
    count, families = (of_pytorch, FAMILIES) if given.engine == "torch" else (of_openvino, NODES)
    columns = [
        count({**common, "implementation": implementation, "attention": attention})
        for implementation, attention in MODELS.values()
    ]
    what = "training step" if given.training else "inference"
    threads = torch.get_num_threads()
    print(f"{given.engine}, {what}, {given.dtype}, {given.size} x {given.size}, {threads} threads\n")
    print(f"| milliseconds | {' | '.join(MODELS)} |\n|---|{'---:|' * len(MODELS)}")
    for family in [*families, "others"]:
        print(f"| {family} | {' | '.join(f'{spent[family]:.1f}' for spent in columns)} |")
    print(f"| all | {' | '.join(f'{sum(spent.values()):.1f}' for spent in columns)} |")


if __name__ == "__main__":
    main()
