"""Where a figure was made: the machine, and the commit the code was at."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Processor, the widest vectors torch uses on it, and cores."""
    import torch

    vectors = torch.backends.cpu.get_cpu_capability()
    return {"cpu": processor(), "vectors": vectors, "cores": os.cpu_count(), "system": platform.system()}


@functools.cache
def processor() -> str:
    """The processor's name, or the kind of machine where the system doesn't tell it."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)


def commit() -> str | None:
    """The commit the code was at, "-dirty" if it had changes (new results are none); None outside a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "src", ":!src/unwrite/results", ":!src/unwrite/bench/results"],
            cwd=here.parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")
