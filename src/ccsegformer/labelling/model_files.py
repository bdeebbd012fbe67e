"""Networks in files: ONNX, OpenVINO's XML and PyTorch's pt2, from `ccsegformer export` or elsewhere."""

import hashlib
import json
import logging
from collections.abc import Callable
from functools import partial
from glob import escape
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ccsegformer.data.labels import Classes
from ccsegformer.data.pixels import IMAGE_MEAN, BandStatistics
from ccsegformer.errors import EngineError, optional_imports
from ccsegformer.labelling.engine import (
    SIDE_STEP,
    Engine,
    EngineName,
    Precision,
    is_installed,
    logits_of,
)
from ccsegformer.labelling.preprocess import Preprocessing
from ccsegformer.models import CrissCrossSegformerConfig

ENGINES: dict[str, tuple[EngineName, ...]] = {
    ".onnx": ("onnxruntime", "openvino"),
    ".xml": ("openvino",),
    ".pt2": ("torch",),
}
"""Engines that run a kind of file, the default first."""
ENTRIES = (
    *("class_names", "palette", "ignore_index", "num_channels", "rescale_factor"),
    *("image_mean", "image_std", "smallest_side", "config"),
)
"""Entries by which a file from `ccsegformer export` describes itself, each in JSON."""


class _Loaded(NamedTuple):
    run: Callable[[Tensor], Tensor]
    sides: tuple[int | None, int | None, int | None]
    """Bands, height and width of the input; None if any number will do."""
    entries: dict[str, str]


def is_model_file(name_or_path: str | Path) -> bool:
    """Check whether a name ends as a model file's does."""
    return Path(name_or_path).suffix in ENGINES


def open_model_file(
    path: str | Path, name: EngineName | None = None, precision: Precision | None = None
) -> tuple[Engine, Classes | None]:
    """Open the engine for a model file, on the CPU, with the classes that the file names.

    A file from `ccsegformer export` describes itself. Any other must take one input, float32
    (batch, bands, H, W), and give logits (batch, K, h, w), as its only output or as one named "logits" or
    "out"; it names no classes, and its input is assumed to be 8-bit RGB normalised by ImageNet's statistics.

    Args:
        path: NAME.onnx, run by ONNX Runtime, or by OpenVINO if asked for, or if it is the only one installed;
            NAME.xml, by OpenVINO; NAME.pt2, by PyTorch. A pt2 file may hold pickled data: open only files
            from people whom you trust.
        name: engine, if not the default.
        precision: fp32 by default; OpenVINO also has bf16.

    Raises:
        EngineError: the file cannot be read, is damaged or describes itself wrongly, or the engine does not
            suit it.
        MissingExtraError: ONNX Runtime was asked for, and is not installed.
    """
    path = Path(path)
    able = ENGINES[path.suffix]
    if name is None:
        name = next((each for each in able if is_installed(each)), able[0])
    if name not in able:
        raise EngineError(f"{path}: runs in {' or '.join(able)}, not in {name}")
    with optional_imports(str(path)):
        import_module(name)
    if precision not in (None, "fp32") and not (name == "openvino" and precision == "bf16"):
        raise EngineError(f"{path}: {name} computes it in fp32, not in {precision}")
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        weights = [path.with_suffix(".bin")] if path.suffix == ".xml" else _external_data(path)
        for each in weights:
            digest += hashlib.sha256(each.read_bytes()).hexdigest()
    except OSError as error:
        raise EngineError(f"{error.filename}: cannot be read: {error.strerror or error}") from error
    load = {"onnxruntime": _load_onnxruntime, "openvino": _load_openvino, "torch": _load_pt2}[name]
    try:
        loaded = load(path, precision or "fp32")
    except EngineError:
        raise
    except Exception as error:  # each library has its own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise EngineError(f"{path}: not a model that {name} can run: {reason}") from error
    return _engine(path, name, precision or "fp32", digest, loaded)


def _engine(
    path: Path, name: EngineName, precision: Precision, digest: str, loaded: _Loaded
) -> tuple[Engine, Classes | None]:
    bands, height, width = loaded.sides
    common: dict[str, Any] = {"name": name, "device": torch.device("cpu"), "precision": precision}
    common |= {"digest": lambda: digest}
    if height and width:
        common["fixed_size"] = (height, width)
    if "class_names" not in loaded.entries:
        return Engine(**common, run=loaded.run, preprocessing=Preprocessing(bands), side_step=SIDE_STEP), None
    try:
        if isinstance(json.loads(loaded.entries["class_names"]), dict):
            raise EngineError(
                f"{path}: is a model for QGIS's Deepness; this takes its folder, or a file from "
                "`ccsegformer export --format onnx`"
            )
        about = {key: json.loads(loaded.entries[key]) for key in ENTRIES}
        palette = tuple((red, green, blue) for red, green, blue in about["palette"])
        classes = Classes(tuple(about["class_names"]), palette, about["ignore_index"])
        engine = Engine(
            **common,
            run=partial(_check_side, loaded.run, path, int(about["smallest_side"])),
            preprocessing=_described(about),
            num_labels=len(classes),
            config=CrissCrossSegformerConfig.from_dict(about["config"]),
        )
    except KeyError as error:
        raise EngineError(f"{path}: {error} is missing from its metadata; export it again") from error
    except (ValueError, TypeError) as error:
        raise EngineError(f"{path}: its metadata cannot be read: {error}") from error
    return engine, classes


def _described(about: dict[str, Any]) -> Preprocessing:
    """Preprocessing from the entries of an exported file."""
    if about["rescale_factor"] != 1 and tuple(about["image_mean"]) == IMAGE_MEAN:
        return Preprocessing(about["num_channels"])
    return Preprocessing(
        about["num_channels"],
        BandStatistics(tuple(about["image_mean"]), tuple(about["image_std"])),
        only_8_bit=False,
    )


def _external_data(path: Path) -> list[Path]:
    """Return the files beside an ONNX file that may hold its weights, such as NAME.onnx.data."""
    return sorted(each for each in path.parent.glob(f"{escape(path.name)}?*") if each.is_file())


def _check_side(run: Callable[[Tensor], Tensor], path: Path, smallest: int, pixels: Tensor) -> Tensor:
    if min(pixels.shape[2:]) < smallest:
        size = " x ".join(map(str, pixels.shape[2:]))
        raise EngineError(f"{path}: takes images of {smallest} pixels a side and more, not {size}")
    return run(pixels)


def _load_onnxruntime(path: Path, precision: Precision) -> _Loaded:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    [image], outputs = session.get_inputs(), [each.name for each in session.get_outputs()]
    wanted = [_logits_name(path, outputs)]

    def run(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(wanted, {image.name: pixels.contiguous().numpy()})[0])

    sides = [side if isinstance(side, int) else None for side in image.shape]
    entries = session.get_modelmeta().custom_metadata_map
    return _Loaded(run, _three(path, sides), {key: entries[key] for key in ENTRIES if key in entries})


def _load_openvino(path: Path, precision: Precision) -> _Loaded:
    from ccsegformer.labelling import _openvino

    graph, run = _openvino.open_graph(path, precision)
    [image] = graph.inputs
    names = [
        next((name for name in ("logits", "out") if name in output.names), f"output {index}")
        for index, output in enumerate(graph.outputs)
    ]
    wanted = names.index(_logits_name(path, names))
    sides = [side.get_length() if side.is_static else None for side in image.partial_shape]
    entries = {}
    for key in ENTRIES:
        try:  # where OpenVINO keeps an ONNX file's metadata, in its own files too
            entries[key] = graph.get_rt_info(["framework", key]).value
        except RuntimeError:
            continue
    return _Loaded(partial(run, wanted), _three(path, sides), entries)


def _load_pt2(path: Path, precision: Precision) -> _Loaded:
    entries = dict.fromkeys(ENTRIES, "")
    logger = logging.getLogger("torch.export")  # its traceback says no more than the exception
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        program = torch.export.load(path, extra_files=entries)
    finally:
        logger.setLevel(before)
    [name] = program.graph_signature.user_inputs
    image = next(node for node in program.graph.nodes if node.name == name).meta["val"]
    network = program.module()
    sides = [side if isinstance(side, int) else None for side in image.shape]
    present = {key: value for key, value in entries.items() if value}
    return _Loaded(lambda pixels: logits_of(network(pixels)), _three(path, sides), present)


def _logits_name(path: Path, outputs: list[str]) -> str:
    """Choose the output that holds the logits."""
    found: list[str] = [name for name in ("logits", "out") if name in outputs]
    if not found and len(outputs) == 1:
        found = outputs
    if not found:
        raise EngineError(f"{path}: has outputs {', '.join(outputs)}; name the one with the logits 'logits'")
    return found[0]


def _three(path: Path, sides: list[int | None]) -> tuple[int | None, int | None, int | None]:
    if len(sides) != 4 or sides[0] not in (None, 1):
        raise EngineError(f"{path}: its input must be (batch, bands, height, width), with any batch or 1")
    _, bands, height, width = sides
    return bands, height, width
