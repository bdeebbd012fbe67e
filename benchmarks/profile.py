"""Where the time goes on CPU: `python -m benchmarks.profile [--size 512] [--training]`.

SegFormer-B0 with 150 classes, one image, float32: PyTorch's profiler, its operators in families. The profiler
slows small operators down, so the sums are a little above what `ccsegformer benchmark model` prints.
"""

import argparse
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile

from ccsegformer.benchmark.model import prepare

FAMILIES = {  # an operator belongs to the first that has a part of its name
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
MODELS = {
    "transformers": ("transformers", "efficient"),
    "ours, efficient attention": ("ours", "efficient"),
    "ours, criss-cross attention": ("ours", "criss_cross"),
}
ROUNDS = 3


def milliseconds(implementation: str, attention: str, side: int, training: bool) -> Counter[str]:
    """Of one run, by family, each operator without those that it calls."""
    work = prepare(
        implementation=implementation,
        variant="b0",
        attention=attention,
        height=side,
        width=side,
        batch=1,
        dtype="float32",
        training=training,
        device="cpu",
    )
    work.run()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(ROUNDS):
            work.run()
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        name = event.key.rpartition("::")[2].lower()
        family = next(
            (family for family, parts in FAMILIES.items() if any(p in name for p in parts)), "others"
        )
        spent[family] += event.self_cpu_time_total / 1000 / ROUNDS
    return spent


def main() -> None:
    """Print a table, a column for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side in pixels")
    parser.add_argument("--training", action="store_true", help="forward and backward instead of inference")
    given = parser.parse_args()
    columns = [milliseconds(*model, given.size, given.training) for model in MODELS.values()]
    what = "training step" if given.training else "inference"
    print(f"{what}, {given.size} x {given.size}, {torch.get_num_threads()} threads\n")
    print(f"| milliseconds | {' | '.join(MODELS)} |\n|---|{'---:|' * len(MODELS)}")
    for family in [*FAMILIES, "others"]:
        print(f"| {family} | {' | '.join(f'{spent[family]:.0f}' for spent in columns)} |")
    print(f"| all | {' | '.join(f'{spent.total():.0f}' for spent in columns)} |")


if __name__ == "__main__":
    main()
