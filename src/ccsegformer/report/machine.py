"""Describe the machine that produced a result."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch


def describe_machine() -> dict[str, str | int | float | None]:
    """Return the hardware and the library versions that affect speed and rounding, as JSON values."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "openvino": _version("openvino"),
        "onnxruntime": _version("onnxruntime"),
    }


def _version(package: str) -> str | None:
    """Return the version of an optional package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's marketing name if the system provides it."""
    listing = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", listing.read_text()) if listing.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()
