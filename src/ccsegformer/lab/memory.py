"""The peak memory of a call. It means little in a process that has a past: measure in a fresh one."""

import ctypes
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import torch


def peak_memory(
    run: Callable[[], object],
    device: str,
    on_loaded: Callable[[Callable[[], None]], object] | None = None,
) -> int:
    """Bytes that `run` needs beyond what is there before.

    CPU: resident memory, which repeats to about a tenth, where `free_at_once` was called first. CUDA:
    allocated memory.

    Args:
        run: what is measured.
        device: "cpu" or "cuda".
        on_loaded: for a `run` that first loads what is not to count: is given a function that begins the
            measurement again.
    """
    cuda = device.startswith("cuda")
    watch: _Allocated | _HighWater | _Sampled = _Allocated() if cuda else _resident()
    watch.begin()
    if on_loaded:
        on_loaded(watch.begin)
    try:
        run()
    finally:
        peak = watch.end()
    return peak


def free_at_once() -> None:
    """Have glibc give back a tensor's memory as it is freed; otherwise a peak depends on what went before."""
    if sys.platform == "linux":
        mmap_threshold, larger_than = -3, 2**17
        getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)(mmap_threshold, larger_than)


def trim() -> None:
    """Give back freed memory that the allocator still holds: it would be used again and not be seen."""
    if hasattr(psutil, "heap_trim"):
        psutil.heap_trim()


def _resident() -> "_HighWater | _Sampled":
    try:
        watch = _HighWater()
        watch.begin()
    except OSError:
        return _Sampled()
    return watch


class _Allocated:
    """What PyTorch allocates on a GPU."""

    def begin(self) -> None:
        self._before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()

    def end(self) -> int:
        return torch.cuda.max_memory_allocated() - self._before


class _HighWater:
    """Resident memory by Linux's own high-water mark."""

    def begin(self) -> None:
        trim()
        Path("/proc/self/clear_refs").write_text("5")  # sets the mark to the present
        self._before = psutil.Process().memory_info().rss

    def end(self) -> int:
        marks = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return max(0, int(marks[1]) * 1024 - self._before) if marks else 0


class _Sampled:
    """Resident memory where there is no such mark: looked at every millisecond."""

    def __init__(self) -> None:
        self._process, self._finished = psutil.Process(), threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def begin(self) -> None:
        trim()
        self._before = self._peak = self._process.memory_info().rss
        if not self._watcher.is_alive():
            self._watcher.start()

    def end(self) -> int:
        self._finished.set()
        self._watcher.join()
        return self._peak - self._before

    def _watch(self) -> None:
        while not self._finished.wait(0.001):
            self._peak = max(self._peak, self._process.memory_info().rss)
