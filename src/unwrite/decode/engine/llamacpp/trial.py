"""A file's first forwards in a process of their own, where llama.cpp may crash: a crash there is one clear error here.

Built by GCC 12 for a processor with AMX, llama.cpp 0.3.36's bindings write half of what `ldtilecfg` reads, and the process
dies in the first product with quantised weights.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from ....errors import ModelError
from ....runs import hash_json, store_json, stored_json

RISKY = "AMX_INT8 = 1"  # in llama.cpp's list of processor features
_FORWARDS = """
import sys
from pathlib import Path
import numpy as np
from unwrite.decode.engine.llamacpp.context import NativeContext, NativeModel
model = NativeModel(Path(sys.argv[1]))
context = NativeContext(model, 64, 2, int(sys.argv[2]))
context.prefill(np.arange(40) % model.vocab)
context.one(0, 40)
"""


def try_apart(path: Path, threads: int, fingerprint: str, program: str = _FORWARDS) -> None:
    """Runs a prompt and a token in another process, once for a fingerprint.

    Args:
        fingerprint: of file, build and threads.
        program: what that process runs.

    Raises:
        ModelError: the process was killed by a signal.
    """
    name = hash_json([fingerprint, "trial"])
    if stored_json(("llamacpp",), name, _passed):
        return
    code = subprocess.run(
        [sys.executable, "-c", program, str(path), str(threads)], capture_output=True, check=False
    ).returncode
    if code < 0:
        raise ModelError(
            f"llama.cpp as it was built here crashes on {path.name} (signal {-code}). Build it without AMX: "
            "CMAKE_ARGS=-DGGML_NATIVE=OFF pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python"
        )
    if code == 0:
        store_json(("llamacpp",), name, "passed", _passed)


def _passed(stored: Any) -> bool:
    if stored != "passed":
        raise ValueError("it is no trial that passed")
    return True
