"""import unwrite is fast and light: torch comes when a name needs it."""

import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "transformers", "datasets", "peft", "sklearn", "scipy")
CHECK = "import sys; {}; print(*[name for name in {!r} if name in sys.modules])"


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    "code",
    [
        "import unwrite",
        "import unwrite.cli",
        "import unwrite.forget, unwrite.models, unwrite.data, unwrite.audit",
        "from unwrite import catalog; catalog.systems(); catalog.methods()",
        "from unwrite import ForgetSplit, UnwriteError",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_used(code):
    assert run(CHECK.format(code, HEAVY)) == ""


def test_import_takes_less_than_three_tenths_of_a_second():
    """Over a bare interpreter, best of five: a busy machine is not the library's fault."""

    def seconds(code):
        start = time.perf_counter()
        run(code)
        return time.perf_counter() - start

    bare = min(seconds("pass") for _ in range(5))
    assert min(seconds("import unwrite") for _ in range(5)) - bare < 0.3


def test_version_is_the_packages():
    from importlib.metadata import version

    import unwrite

    assert unwrite.__version__ == version("unwrite")
