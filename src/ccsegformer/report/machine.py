"""The machine that figures were made on."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch


def describe_machine() -> dict[str, str | int | float | None]:
    """Processor, cores, memory, GPU and the versions that decide times and rounding, as JSON values."""
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
    """None where it is not installed: it is optional."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's marketing name where the system tells it."""
    listing = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", listing.read_text()) if listing.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()
