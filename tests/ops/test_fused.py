"""The fused backend without a GPU: in Triton's interpreter, compiled only, and unsupported tensors."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ccsegformer.ops import criss_cross_attention, fused
from tests.ops.test_criss_cross import tensors

needs_triton = pytest.mark.skipif(not fused.HAS_TRITON, reason="Triton is not installed")


@needs_triton
def test_fused_ladder_passes_in_a_separate_process() -> None:
    ladder = Path(__file__).with_name("fused_ladder.py")
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(ladder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ passed in", done.stdout, re.MULTILINE), done.stdout


class Compiled:
    """Stand-in for a kernel that compiles each launch without running it."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.binaries: list[Any] = []

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return lambda *args, **options: self.binaries.append(self.kernel.warmup(*args, grid=grid, **options))


@pytest.fixture
def compile_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], list[Compiled]]:
    """Return a function that makes Triton compile for a compute capability, without such a GPU."""

    def compile_for(capability: int) -> list[Compiled]:
        import triton
        from triton.backends.compiler import GPUTarget

        from ccsegformer.ops import _kernels

        gpu = SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
            get_current_device=lambda: capability,  # Triton caches compiled kernels by device
            get_current_stream=lambda device: 0,
        )
        monkeypatch.setattr(triton.runtime.driver, "_active", gpu)
        monkeypatch.setattr(triton.knobs.nvidia, "dump_ptxas_log", True)
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        kernels = []
        for name in ("attend", "differentiate_query", "differentiate_key_value"):
            kernels.append(Compiled(getattr(_kernels, name)))
            monkeypatch.setattr(_kernels, name, kernels[-1])
        return kernels

    return compile_for


@needs_triton
@pytest.mark.parametrize(
    ("capability", "dtype", "shape"),
    [
        (90, torch.bfloat16, (2, 2, 128, 128, 64)),
        (80, torch.float32, (1, 1, 1, 40, 24)),
    ],
    ids=str,
)
def test_every_launch_compiles_without_spills(
    capability: int,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    compile_for: Callable[[int], list[Compiled]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    kernels = compile_for(capability)
    query, key, value, grad = (torch.empty(shape, dtype=dtype) for _ in range(4))
    out, lse = fused._fused_criss_cross(query, key, value, 0.125)
    fused._fused_criss_cross_backward(grad, query, key, value, out, lse, 0.125)
    smallest = 99 * 1024  # bytes of shared memory per program on every GPU since Ampere
    for kernel in kernels:
        assert len(kernel.binaries) == 2  # rows and columns
        assert all(binary.metadata.shared <= smallest for binary in kernel.binaries)
    spills = re.findall(r"(\d+) bytes spill stores", capfd.readouterr().out)
    assert len(spills) == 6
    assert set(spills) == {"0"}


@pytest.mark.parametrize(
    ("query", "value_dim", "reason"),
    [
        (torch.empty(1, 1, 2, 3, 16, dtype=torch.float64), 16, "float16, not in torch.float64"),
        (torch.empty(1, 1, 2, 3, 65), 65, "head_dim may be at most 64, not 65"),
        (torch.empty(1, 1, 2, 3, 16), 32, "value_dim must equal head_dim, which is 16, not 32"),
    ],
)
def test_unsupported_tensors_are_refused(
    query: torch.Tensor, value_dim: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "HAS_TRITON", True)
    monkeypatch.setattr(fused, "INTERPRETED", True)  # otherwise the device would be refused first
    value = query.new_empty((*query.shape[:-1], value_dim))
    with pytest.raises(ValueError, match=f"fused backend does not support .*{re.escape(reason)}"):
        criss_cross_attention(query, query, value, backend="fused")


def test_cpu_uses_flash() -> None:
    inputs = tensors((1, 2, 5, 6, 16), dtype=torch.float32)[:3]
    assert torch.equal(criss_cross_attention(*inputs), criss_cross_attention(*inputs, backend="flash"))
    with pytest.raises(ValueError, match=r"fused backend .*: it runs on cuda, not on cpu"):
        criss_cross_attention(*inputs, backend="fused")


def test_unsupported_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "HAS_TRITON", True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=7, minor=5))
    with FakeTensorMode():
        query = torch.empty(1, 1, 2, 3, 16, device="cuda")
    assert fused.fused_refusal(query, query) == "it needs an NVIDIA GPU of compute capability 8.0 or above"
    monkeypatch.setattr(fused, "HAS_TRITON", False)
    assert fused.fused_refusal(query, query) == "it needs triton, which is not installed"


def test_triton_is_imported_only_when_a_kernel_runs() -> None:
    script = "import ccsegformer.ops, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "ccsegformer.ops.fused" in loaded.split()
    assert not {"triton", "ccsegformer.ops._kernels"} & set(loaded.split())
