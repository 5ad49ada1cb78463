"""What this machine is: its cores, what its processor can do, and the versions that ran."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("onnx-compress", "onnx", "onnxruntime", "numpy", "onnx-graphsurgeon", "scikit-learn")
# 8-bit products summed without widening first: vpmaddubsw saturates, vpdpbusd does not
VNNI = {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"}


@cache
def processor() -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo; empty where there is none."""
    return next(iter(_processors()), {})


def physical_cores() -> int:
    """Physical cores this process may run on, at least 1."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {
        (fields.get("physical id"), fields.get("core id"))
        for fields in _processors()
        if "core id" in fields and int(fields["processor"]) in usable
    }
    return max(1, len(cores) or len(usable))


def products_saturate() -> bool:
    """Whether 8-bit products may saturate here: x86 without VNNI."""
    flags = set(processor().get("flags", "").split())
    return platform.machine() in {"x86_64", "AMD64", "i686"} and not flags & VNNI


def peak_resident() -> int:
    """Bytes this process has held in memory at most, mapped pages included.

    Not ru_maxrss where /proc tells: that one keeps what the parent held before the process became what it is.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment() -> dict[str, str | int]:
    """Processor, system and versions, for the report."""
    return {
        "processor": processor().get("model name") or platform.processor() or platform.machine(),
        "cores": physical_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: package_version(name) for name in PACKAGES},
    }


def package_version(name: str) -> str:
    """The version of an installed package; "unknown" for one that runs from its source."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _processors() -> list[dict[str, str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    blocks = (block for block in text.split("\n\n") if block.strip())
    return [
        {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        for block in blocks
    ]
