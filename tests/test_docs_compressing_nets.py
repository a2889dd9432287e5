"""docs/compressing-nets.md: its Python runs as it stands, and its command is one."""

import re
import shlex
from pathlib import Path

from unwrite.cli import commands

TEXT = (Path(__file__).parents[1] / "docs" / "compressing-nets.md").read_text(encoding="utf-8")


def test_its_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    names = {}
    exec(block, names)
    assert re.fullmatch(r"\d+ to \d+ bytes, \d+ to \d+ FLOPs\n", capsys.readouterr().out)
    assert names["report"]["blocks.0.conv1"].kept_count == 17
    assert names["again"].blocks[0].conv1.out_channels == 17


def test_its_command_is_one():
    (line,) = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S) for line in block.splitlines()]
    function, bound, _ = commands().parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)
    assert function.__name__ == "compress"
    assert bound.arguments["prune"] == 0.3
