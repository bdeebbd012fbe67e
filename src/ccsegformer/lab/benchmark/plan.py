"""Plan benchmarks: which contenders to measure at which sizes, and how to describe them."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from ccsegformer.errors import CCSegformerError
from ccsegformer.lab.benchmark.output import count_threads
from ccsegformer.lab.benchmark.runtimes import HINTS, RUNTIME_PACKAGES, missing_packages
from ccsegformer.lab.benchmark.tables import Specification, Specifications


@dataclass(frozen=True)
class Plan:
    """A benchmark to run.

    Attributes:
        name: File name of the output, without extension.
        title: Description of what is measured.
        contests: Contenders by heading.
        common: Settings that all contenders share.
        missing: Package to install, by runtime that cannot take part without it.
        busy: Keep one core busy with another process during the benchmark.
    """

    name: str
    title: str
    contests: dict[str, Specifications]
    common: Specification
    missing: dict[str, str] = field(default_factory=dict)
    busy: bool = False


def plan_models(
    variants: Sequence[str],
    sizes: Sequence[int],
    attentions: Sequence[str],
    *,
    batch: int = 1,
    training: bool = False,
    dtype: str = "float32",
    runtime: str | None = None,
    compiled: bool = False,
    threads: int | None = None,
    busy: bool = False,
) -> Plan:
    """Plan a benchmark of whole models against transformers' SegFormer with the same weights.

    Args:
        variants: Sizes of SegFormer, "b0" to "b5".
        sizes: Sides of the square images, in pixels.
        attentions: Attentions of this package's models.
        batch: Number of images at a time.
        training: Measure forward and backward passes instead of inference.
        dtype: "float32", "bfloat16" or "float16".
        runtime: Only contenders run by "eager", "openvino" or "onnxruntime".
        compiled: Add contenders compiled by `torch.compile`.
        threads: Number of CPU threads; PyTorch's default if None.
        busy: Keep one core busy with another process.

    Raises:
        CCSegformerError: No contender runs in `runtime`.
    """
    common = {"batch": batch, "training": training, "dtype": dtype, **_this_machine(threads)}
    able, missing = supported_runtimes(common), missing_packages()
    where = count_threads(common["threads"]) + (", one core kept busy" if busy else "")
    contests = dict(
        model_contests(variants, sizes, attentions, compiled, where, common, able - missing.keys())
    )
    if runtime:
        contests = {heading: only_runtime(runtime, found) for heading, found in contests.items()}
    title = f"{', '.join(variants).upper()} with 150 classes, batch {batch}, {dtype}, {_mode(training)}"
    suffix = (f"-threads-{threads}" if threads else "") + ("-busy" if busy else "")
    return Plan(
        f"model-{_file_name(training, dtype, batch)}{suffix}",
        title + (", one core kept busy" if busy else ""),
        contests,
        common,
        {name: package for name, package in missing.items() if name in able},
        busy,
    )


def plan_attention(
    sizes: Sequence[int],
    *,
    heads: int = 1,
    head_dim: int = 32,
    batch: int = 1,
    training: bool = False,
    dtype: str = "float32",
) -> Plan:
    """Plan a benchmark of criss-cross attention: each available backend against the textbook formula.

    Args:
        sizes: Sides of the square grids, in positions.
        heads: Number of attention heads.
        head_dim: Channels per head.
        batch: Number of grids at a time.
        training: Measure forward and backward passes instead of inference.
        dtype: "float32", "bfloat16" or "float16".
    """
    common = {"batch": batch, "heads": heads, "head_dim": head_dim, "training": training, "dtype": dtype}
    common |= _this_machine(None)
    backends = ["flash", "fused"] if common["device"] == "cuda" else ["flash"]
    shape = f"batch {batch}, {heads} {'heads' if heads > 1 else 'head'} of {head_dim} channels"
    return Plan(
        f"attention-{_file_name(training, dtype, batch)}",
        f"Criss-cross attention, {shape}, {dtype}, {_mode(training)}",
        dict(attention_contests(sizes, backends, common)),
        common,
    )


def model_contests(
    variants: Iterable[str],
    sizes: Iterable[int],
    attentions: Sequence[str],
    compiled: bool,
    where: str,
    common: Specification,
    runtimes: Collection[str],
) -> Iterator[tuple[str, Specifications]]:
    """Yield a heading and contenders for each variant and size: transformers' SegFormer, then our models.

    Args:
        compiled: Also compile what PyTorch runs with `torch.compile`.
        where: Description of the threads and other load, for the headings.
        runtimes: Available runtimes besides PyTorch, "OpenVINO" and "ONNX Runtime".
    """
    for variant in variants:
        for size in sizes:
            fixed = {**common, "kind": "model", "variant": variant, "height": size, "width": size}
            theirs = {**fixed, "implementation": "transformers", "attention": "efficient"}
            found = _transformers_contenders(theirs, compiled, runtimes)
            for name in attentions:
                ours = {**fixed, "implementation": "ours", "attention": name}
                found |= _own_contenders(name, ours, compiled, runtimes)
            yield f"SegFormer-{variant.upper()}, {where}, {size} x {size}", found


def attention_contests(
    sizes: Iterable[int], backends: Sequence[str], common: Specification
) -> Iterator[tuple[str, Specifications]]:
    """Yield a heading and contenders for each size: the textbook formula, then the other backends."""
    for size in sizes:
        fixed = {**common, "kind": "attention", "height": size, "width": size}
        names = {"textbook formula": "reference", **{name: name for name in backends}}
        yield f"{size} x {size} positions", {name: {**fixed, "backend": each} for name, each in names.items()}


def only_runtime(runtime: str, specifications: Specifications) -> Specifications:
    """Return the contenders run by "eager", "openvino" or "onnxruntime".

    Raises:
        CCSegformerError: There are none.
    """
    found = {name: each for name, each in specifications.items() if each.get("runtime", "eager") == runtime}
    if not found:
        raise CCSegformerError(f"no contender runs in {runtime}; there are {', '.join(specifications)}")
    return found


def supported_runtimes(common: Specification) -> set[str]:
    """Return the runtimes besides PyTorch that support the settings: only inference on a CPU."""
    if common["device"] != "cpu" or common["training"] or common["dtype"] not in HINTS:
        return set()
    return set(RUNTIME_PACKAGES) if common["dtype"] == "float32" else {"OpenVINO"}


def _transformers_contenders(
    plain: Specification, compiled: bool, runtimes: Collection[str]
) -> Specifications:
    channels_last = {**plain, "channels_last": True}
    found = {"transformers": plain, "transformers, channels-last": channels_last}
    if compiled:
        found["transformers, compiled"] = {**plain, "compiled": True}
        found["transformers, channels-last, compiled"] = {**channels_last, "compiled": True}
    if "OpenVINO" in runtimes:
        found["transformers, in OpenVINO"] = {**plain, "runtime": "openvino"}
    if "ONNX Runtime" in runtimes:
        found["transformers, in ONNX Runtime"] = {**plain, "runtime": "onnxruntime"}
    return found


def _own_contenders(
    name: str, plain: Specification, compiled: bool, runtimes: Collection[str]
) -> Specifications:
    """Return our contenders. The plain name is what the package uses: OpenVINO if available, else PyTorch."""
    found = {name: plain}
    if "OpenVINO" in runtimes:
        found = {name: {**plain, "runtime": "openvino"}, f"{name}, eager": plain}
    if compiled:
        found[f"{name}, compiled"] = {**plain, "compiled": True}
    if {"OpenVINO", "ONNX Runtime"} <= set(runtimes):
        found[f"{name}, ONNX in OpenVINO"] = {**plain, "runtime": "onnx_openvino"}
    if "ONNX Runtime" in runtimes:
        found[f"{name}, ONNX in ONNX Runtime"] = {**plain, "runtime": "onnxruntime"}
    return found


def _mode(training: bool) -> str:
    return "forward and backward" if training else "forward"


def _file_name(training: bool, dtype: str, batch: int) -> str:
    return f"{'training' if training else 'inference'}-{dtype}-batch-{batch}"


def _this_machine(threads: int | None) -> Specification:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"device": device, "threads": threads or torch.get_num_threads()}
