"""How fast and how large a machine is: this one is measured in a second, a GPU is looked up by its name."""

import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.errors import LineupError
from pipeline.hardware import describe, detect

PROBE = 2048
"""Rows and columns of the matrices that are multiplied to measure a processor."""
PROBE_SECONDS = 1.0
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

    tflops: float
    """Peak of dense bfloat16 matrix products, in TFLOP a second."""
    gigabytes: int


GPUS = {
    "RTX 3090": Gpu(71, 24),
    "RTX 4090": Gpu(165, 24),
    "L4": Gpu(121, 24),
    "L40S": Gpu(362, 48),
    "A100 40GB": Gpu(312, 40),
    "A100": Gpu(312, 80),
    "H100 PCIe": Gpu(756, 80),
    "H100": Gpu(989, 80),
    "H200": Gpu(989, 141),
}
"""Vendor's data sheets, without sparsity; A100 and H100 are the SXM modules with 80 GB."""


def this_machine(folder: Path) -> Machine:
    """Measure this machine; `folder` lies on the disk that a study would be written to."""
    compute = detect()
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    on_gpu = compute.device == "cuda"
    return Machine(
        name=f"this machine ({describe()})",
        speed=_speed(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=pages,
        gpu_memory=torch.cuda.get_device_properties(0).total_memory if on_gpu else None,
        disk=shutil.disk_usage(folder).free,
        origin=f"measured just now, {compute.precision}",
    )


def gpu_machine(name: str) -> Machine:
    """A machine with the GPU of that name. Raises LineupError for one that the table does not have."""
    found = {known.lower(): known for known in GPUS}.get(name.lower())
    if found is None:
        raise LineupError(f"Unknown GPU '{name}'. Known: {', '.join(GPUS)}.")
    gpu = GPUS[found]
    return Machine(
        name=found,
        speed=UTILISATION * gpu.tflops * 1e12,
        cores=CORES_BESIDE_A_GPU,
        memory=None,
        gpu_memory=gpu.gigabytes * 10**9,
        disk=None,
        origin=f"{UTILISATION:.0%} of the {gpu.tflops:g} TFLOP/s of its data sheet, bfloat16",
    )


def _speed() -> float:
    """The fastest of several products: others may be at work on the machine."""
    compute = detect()
    one, other = (torch.ones(PROBE, PROBE, device=compute.device) for _ in range(2))
    fastest, until = 0.0, time.perf_counter() + PROBE_SECONDS
    while not fastest or time.perf_counter() < until:
        started = time.perf_counter()
        with compute.autocast():
            product = one @ other
        float(product[0, 0])  # waits for a GPU to be done
        fastest = max(fastest, 2 * PROBE**3 / (time.perf_counter() - started))
    return fastest
