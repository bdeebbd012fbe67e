"""A file that `ccsegformer export` wrote, in ONNX Runtime on the CPU."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from ccsegformer.errors import EngineError
from ccsegformer.labelling.engine import Engine
from ccsegformer.models import CrissCrossSegformerConfig

NEEDED = ("class_names", "palette", "ignore_index", "config", "smallest_side")
"""Of the entries that an exported file describes itself by."""


def open_file(path: Path) -> tuple[Engine, dict[str, Any]]:
    """An engine for an ONNX file, and the file's metadata.

    Raises:
        EngineError: the file cannot be read, is damaged, or does not describe itself.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        content = path.read_bytes()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # ONNX Runtime's own have no base but this
        raise EngineError(f"{path}: is no ONNX file that ONNX Runtime can run: {error}") from error
    entries = session.get_modelmeta().custom_metadata_map
    missing = [name for name in NEEDED if name not in entries]
    if missing:
        raise EngineError(f"{path}: has no {missing[0]} in its metadata; write it by `ccsegformer export`")
    try:
        metadata = {name: json.loads(entries[name]) for name in NEEDED}
        config = CrissCrossSegformerConfig.from_dict(metadata["config"])
    except (ValueError, TypeError) as error:
        raise EngineError(f"{path}: its metadata cannot be read: {error}") from error
    run = partial(_run, session, path, int(metadata["smallest_side"]))
    digest = hashlib.sha256(content).hexdigest()
    return Engine("onnxruntime", torch.device("cpu"), "fp32", config, run, lambda: digest), metadata


def _run(session: Any, path: Path, smallest: int, pixels: Tensor) -> Tensor:
    if min(pixels.shape[2:]) < smallest:
        size = " x ".join(map(str, pixels.shape[2:]))
        raise EngineError(f"{path}: takes images of {smallest} pixels a side and more, not {size}")
    return torch.from_numpy(session.run(None, {"pixel_values": pixels.contiguous().numpy()})[0])
