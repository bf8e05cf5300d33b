"""Where a study computes and how precisely: chosen once from what the machine has, and recorded."""

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Compute:
    """A device, and whether matrix products run in bfloat16 (under autocast) or in float32."""

    device: str
    bfloat16: bool

    @property
    def precision(self) -> str:
        """What the provenance table says of it."""
        return "bfloat16 autocast" if self.bfloat16 else "float32"

    def autocast(self) -> AbstractContextManager[object]:
        """A context in which matrix products have this precision."""
        return torch.autocast(self.device, dtype=torch.bfloat16) if self.bfloat16 else nullcontext()


def detect() -> Compute:
    """CUDA when there is one; bfloat16 only where the hardware multiplies it: emulated it is slower than float32."""
    if torch.cuda.is_available():
        return Compute("cuda", torch.cuda.is_bf16_supported(including_emulation=False))
    flags = _cpu_flags()
    return Compute("cpu", bool({"amx_bf16", "avx512_bf16"} & flags))


def describe() -> str:
    """The machine in a line: processor, cores that may be used, GPU, operating system."""
    parts = [
        _cpu_name(),
        f"{len(os.sched_getaffinity(0))} cores" if hasattr(os, "sched_getaffinity") else "",
        _gpu_name(),
    ]
    return ", ".join(part for part in [*parts, platform.system()] if part)


def _gpu_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _cpu_flags() -> set[str]:
    return set(_cpuinfo("flags").split())


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
