"""Where a study computes and how precisely: chosen once from what the machine has, and recorded."""

import os
import platform
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from core.errors import UserError
from pipeline.config import Precision

VARIABLE = "LINEUP_PRECISION"
"""The environment variable that says what `auto` means, so that one machine can do as another would."""


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


def detect(precision: Precision = "auto") -> Compute:
    """CUDA when there is one, in the precision that is asked for.

    `auto` takes bfloat16 only where the hardware multiplies it: emulated, which works anywhere, it is slower than
    float32. Raises UserError where LINEUP_PRECISION names no precision.
    """
    device, asked = "cuda" if torch.cuda.is_available() else "cpu", settled(precision)
    return Compute(device, _multiplies_bfloat16(device) if asked == "auto" else asked == "bfloat16")


def settled(precision: Precision) -> Precision:
    """The precision that a study asks for, or LINEUP_PRECISION where it leaves the choice; `auto` without either.

    Raises UserError where LINEUP_PRECISION names no precision.
    """
    if precision != "auto":
        return precision
    match os.environ.get(VARIABLE, ""):
        case "":
            return "auto"
        case "float32" | "bfloat16" as named:
            return named
        case other:
            raise UserError(
                f"{VARIABLE} is '{other}', which is no precision. Known: float32, bfloat16; without it the hardware"
                " decides."
            )


def _multiplies_bfloat16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool({"amx_bf16", "avx512_bf16"} & _cpu_flags())


@contextmanager
def enough_memory() -> Iterator[None]:
    """Raise UserError where memory, of the machine or of its GPU, is asked for that there is not."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = " ".join(str(error).split())
        if isinstance(error, RuntimeError) and not re.search("can't allocate memory|out of memory", words):
            raise
        raise UserError(
            f"There is not enough memory ({words[:200] or type(error).__name__}). What is finished is kept: see by"
            " `lineup plan` what takes how much, and lower sae.d_sae, sae.batch_tokens or corpus.tokens."
        ) from error


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
