"""The peak memory of a call. It means little in a process that has a past: measure in a fresh one."""

import ctypes
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import torch


def peak_memory(run: Callable[[], object], device: str) -> int:
    """Bytes that `run` needs beyond what is there before.

    CPU: resident memory, which repeats to about a tenth, where `free_at_once` was called first. CUDA:
    allocated memory.
    """
    return _peak_cuda(run) if device.startswith("cuda") else _peak_resident(run)


def _peak_cuda(run: Callable[[], object]) -> int:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def free_at_once() -> None:
    """Have glibc give back a tensor's memory as it is freed; otherwise a peak depends on what went before."""
    if sys.platform == "linux":
        mmap_threshold, larger_than = -3, 2**17
        getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)(mmap_threshold, larger_than)


def _peak_resident(run: Callable[[], object]) -> int:
    """Bytes by which resident memory rises while `run` runs."""
    process = psutil.Process()
    if hasattr(psutil, "heap_trim"):
        psutil.heap_trim()  # freed memory that the allocator still holds would be used again and not seen
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: sets the high-water mark to the present
    except OSError:
        return _sampled_peak(run, process)
    before = process.memory_info().rss
    run()
    marks = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return max(0, int(marks[1]) * 1024 - before) if marks else 0


def _sampled_peak(run: Callable[[], object], process: psutil.Process) -> int:
    """The same where there is no high-water mark: resident memory looked at every millisecond."""
    before = peak = process.memory_info().rss
    finished = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not finished.wait(0.001):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        finished.set()
        watcher.join()
    return peak - before
