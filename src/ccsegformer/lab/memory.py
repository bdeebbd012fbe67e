"""Measure the peak memory of a function call. Use a fresh process: freed memory is reused unseen."""

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
    """Return the peak memory of `run` in bytes, above the memory in use before.

    On a CPU this is resident memory, reproducible to about 10% after `free_at_once`. On CUDA it is allocated
    memory.

    Args:
        run: Function to measure.
        device: "cpu" or "cuda".
        on_loaded: Function that receives a callback. Calling the callback restarts the measurement, so that a
            `run` that first loads something can leave the loading out.
    """
    cuda = device.startswith("cuda")
    watch: _AllocatedPeak | _ResidentPeak | _SampledPeak = _AllocatedPeak() if cuda else _resident_watch()
    watch.begin()
    if on_loaded:
        on_loaded(watch.begin)
    try:
        run()
    finally:
        peak = watch.end()
    return peak


def free_at_once() -> None:
    """Make glibc return a tensor's memory when it is freed, so that earlier work does not hide a peak."""
    if sys.platform == "linux":
        mmap_threshold, larger_than = -3, 2**17
        getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)(mmap_threshold, larger_than)


def trim() -> None:
    """Return freed memory that the allocator still holds; reusing it would hide a peak."""
    if hasattr(psutil, "heap_trim"):
        psutil.heap_trim()


def _resident_watch() -> "_ResidentPeak | _SampledPeak":
    try:
        watch = _ResidentPeak()
        watch.begin()
    except OSError:
        return _SampledPeak()
    return watch


class _AllocatedPeak:
    """Peak of the memory that PyTorch allocates on a GPU."""

    def begin(self) -> None:
        self._before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()

    def end(self) -> int:
        return torch.cuda.max_memory_allocated() - self._before


class _ResidentPeak:
    """Peak of resident memory, from Linux's high-water mark."""

    def begin(self) -> None:
        trim()
        Path("/proc/self/clear_refs").write_text("5")  # resets the mark
        self._before = psutil.Process().memory_info().rss

    def end(self) -> int:
        marks = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return max(0, int(marks[1]) * 1024 - self._before) if marks else 0


class _SampledPeak:
    """Peak of resident memory, sampled every millisecond where the system has no high-water mark."""

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
