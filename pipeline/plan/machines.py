"""Speed and memory of a machine: this one is measured in a second, a GPU is looked up by its name."""

import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import torch

from core.errors import UserError
from pipeline.config import Precision
from pipeline.hardware import Compute, describe, detect, settled

PROBE = 2048
"""Rows and columns of the matrices that are multiplied to measure a processor."""
PROBE_SECONDS = 1.0
PATIENCE_SECONDS = 10.0
"""Longest product that is waited for: bfloat16 may be emulated, a hundred times slower than float32."""
UTILISATION = 0.4
"""Share of a GPU's peak that large matrix products reach: an assumption, not a measurement."""
CORES_BESIDE_A_GPU = 16


class Machine(NamedTuple):
    """What a plan needs to know of a machine."""

    name: str
    speed: float
    """FLOP a second of large matrix products, in the precision that a study would have there."""
    cores: int
    memory: int | None
    """Bytes of main memory; None where it is not known."""
    gpu_memory: int | None
    """Bytes of a GPU's memory; None where there is no GPU."""
    disk: int | None
    """Bytes that are free; None where it is not known."""
    origin: str
    """Where the speed comes from."""


class Gpu(NamedTuple):
    """A row of `GPUS`."""

    bfloat16: float
    """Peak of dense matrix products in bfloat16, in TFLOP a second."""
    float32: float
    """The same in float32, on the cores that are not for matrices: torch takes no TF32 unasked."""
    gigabytes: int


GPUS = {
    "RTX 3090": Gpu(71, 35.6, 24),
    "RTX 4090": Gpu(165, 82.6, 24),
    "L4": Gpu(121, 30.3, 24),
    "L40S": Gpu(362, 91.6, 48),
    "A100 40GB": Gpu(312, 19.5, 40),
    "A100": Gpu(312, 19.5, 80),
    "H100 PCIe": Gpu(756, 51, 80),
    "H100": Gpu(989, 67, 80),
    "H200": Gpu(989, 67, 141),
}
"""Vendor's data sheets, without sparsity; A100 and H100 are the SXM modules with 80 GB."""


def this_machine(folder: Path, precision: Precision = "auto") -> Machine:
    """Measure this machine in a study's precision; `folder` lies on the disk that the study would be written to."""
    compute = detect(precision)
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    on_gpu = compute.device == "cuda"
    return Machine(
        name=f"this machine ({describe()})",
        speed=_speed(compute),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=pages,
        gpu_memory=torch.cuda.get_device_properties(0).total_memory if on_gpu else None,
        disk=shutil.disk_usage(folder).free,
        origin=f"measured just now, {compute.precision}",
    )


def gpu_machine(name: str, precision: Precision = "auto") -> Machine:
    """A machine with the GPU of that name. Raises UserError for one that the table does not have."""
    found = {known.lower(): known for known in GPUS}.get(name.lower())
    if found is None:
        raise UserError(f"Unknown GPU '{name}'. Known: {', '.join(GPUS)}.")
    gpu, named = GPUS[found], "float32" if settled(precision) == "float32" else "bfloat16"
    tflops = gpu.float32 if named == "float32" else gpu.bfloat16
    return Machine(
        name=found,
        speed=UTILISATION * tflops * 1e12,
        cores=CORES_BESIDE_A_GPU,
        memory=None,
        gpu_memory=gpu.gigabytes * 10**9,
        disk=None,
        origin=f"{UTILISATION:.0%} of the {tflops:g} TFLOP/s of its data sheet, {named}",
    )


def _speed(compute: Compute) -> float:
    """The fastest of several products: others may be at work on the machine. Small ones if large ones take long."""
    rough = max(_rate(compute, PROBE // 8) for _ in range(3))
    size = PROBE if 2 * PROBE**3 / rough < PATIENCE_SECONDS else PROBE // 8
    found, until = [_rate(compute, size)], time.perf_counter() + PROBE_SECONDS
    while time.perf_counter() < until:
        found.append(_rate(compute, size))
    return max(found)


def _rate(compute: Compute, size: int) -> float:
    """FLOP a second of one product."""
    one, other = (torch.ones(size, size, device=compute.device) for _ in range(2))
    started = time.perf_counter()
    with compute.autocast():
        product = one @ other
    float(product[0, 0])  # waits for a GPU to be done
    return 2 * size**3 / (time.perf_counter() - started)
