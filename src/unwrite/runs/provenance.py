"""Where a figure was made: the machine, and the commit the code was at."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Processor, the widest vectors torch uses on it, and cores."""
    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    vectors = torch.backends.cpu.get_cpu_capability()
    return {"cpu": name, "vectors": vectors, "cores": os.cpu_count(), "system": platform.system()}


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
