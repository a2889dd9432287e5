"""What reaches a terminal is text: no control sign, no markup, no link that came from outside; and one module prints."""

import ast
import io
import json
import re
import subprocess
import sys
import time
import unicodedata
import warnings
from pathlib import Path

import pytest
from rich.console import Console
from rich.markdown import Markdown
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import unwrite
from unwrite.audit.base import Score
from unwrite.audit.report.parts import AttackResult
from unwrite.audit.report.report import Report
from unwrite.bench.sweep_table import tables
from unwrite.cli import output
from unwrite.errors import Notice
from unwrite.reproduce.base import Claim, table
from unwrite.runs import progress
from unwrite.terminal import one_line, text, visible

SOURCE = Path(unwrite.__file__).parent
HOSTILE = "a[/b] [bold]c[/] :smile: [link=http://x.example]d[/link] \x1b]8;;http://x.example\x07e\x1b[2J\x9b31m\u202ef"
SHOWN = r"a[/b] [bold]c[/] :smile: [link=http://x.example]d[/link] \x1b]8;;http://x.example\x07e\x1b[2J\x9b31m\u202ef"


def is_a_sign(character: str) -> bool:
    """Whether a terminal may obey it, by Unicode's own tables."""
    category, direction = unicodedata.category(character), unicodedata.bidirectional(character)
    return category in ("Cc", "Cs", "Zl", "Zp") or direction in {
        *("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")
    }


def test_every_control_sign_of_unicode_is_written_out_and_nothing_else():
    for code in (*range(0x3000), *range(0xD000, 0x11000), *range(0x11000, 0x110000, 97)):
        character = chr(code)
        shown = visible(character)
        assert (shown != character) == is_a_sign(character), hex(code)
        assert shown == character or (shown.isascii() and shown.isprintable() and int(shown[2:], 16) == code)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a\nb\r\nc\td", "a\nb\r\nc\td"),
        ("good\rbad", r"good\x0dbad"),
        ("end\r", r"end\x0d"),
        ("\r\r\n", "\\x0d\r\n"),
        ("a\x0bb\x0cc\x85d\u2028e", r"a\x0bb\x0cc\x85d\u2028e"),
        ("שלום \u200fمرحبا 日本 é 👩\u200d💻", "שלום \u200fمرحبا 日本 é 👩\u200d💻"),
    ],
)
def test_a_models_line_ends_and_tabs_stay(given, shown, capsys):
    assert visible(given, lines=True) == shown
    output.write(given)
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("no file a\nb.", "no file a b."),
        ("a \r\n\n \t b", "a b"),
        ("two  spaces\tin a name", r"two  spaces\x09in a name"),
        ("a\u2028b\x85c\x1cd", "a b c d"),
        ("\n\x1b[31mred\n", r"\x1b[31mred"),
        (HOSTILE, SHOWN),
    ],
)
def test_a_refusal_is_one_line(given, shown, capsys):
    assert one_line(given) == shown
    output.complain(given)
    assert capsys.readouterr().err == f"unwrite: {shown}\n"


@pytest.fixture(params=[False, True], ids=["a pipe", "a terminal"])
def terminal(request, monkeypatch):
    """The console on a stream of its own, with and without a terminal behind it."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1") if request.param else monkeypatch.delenv("FORCE_COLOR", raising=False)
    output._terminal.cache_clear()
    console = output.console()
    console.file = io.StringIO()
    console.is_one = request.param
    yield console
    output._terminal.cache_clear()


def printed(console, *what) -> str:
    """What was sent, without the console's own colours; any other escape sequence is an error."""
    console.print(*what)
    sent = console.file.getvalue()
    if console.is_one:
        assert "\x1b[" in sent, "the test is of a terminal"
        sent = re.sub(r"\x1b\[[0-9;]*m", "", sent)
    assert not any(is_a_sign(character) for character in sent.replace("\n", "")), sent
    return sent


def in_a_table(what) -> Table:
    shown = Table(title=what, caption=what)
    shown.add_column(what, footer=what)
    shown.add_row(what)
    return shown


@pytest.mark.parametrize(
    "way",
    [
        lambda: HOSTILE,
        lambda: Text(HOSTILE, "bold"),
        lambda: output.label(HOSTILE, "dim", HOSTILE),
        lambda: in_a_table(HOSTILE),
        lambda: in_a_table(text(HOSTILE)),
        lambda: Panel(Text(HOSTILE), title=Text(HOSTILE)),
    ],
    ids=["a string", "a Text", "a label", "a table", "a table of Texts", "a panel"],
)
def test_nothing_printed_is_read_as_markup_or_sent_as_it_is(terminal, way):
    sent = printed(terminal, output.label("colour", "red"), way())
    assert SHOWN.replace(r"\x07", "") in sent.replace(r"\x07", "")  # the library itself drops the bell of its own Text


def test_a_page_of_markdown_makes_no_link(terminal):
    assert "x" in printed(terminal, Markdown(f"# {HOSTILE}\n[x](http://x.example)"))


def a_report() -> Table:
    curve = [{"step": 0.0, HOSTILE: 0.1}]
    return Report(
        suite=HOSTILE,
        split=HOSTILE,
        rows={},
        metrics=[{"name": HOSTILE, "better": "lower", "about": HOSTILE, "panel": HOSTILE}],
        columns={HOSTILE: {HOSTILE: Score("", 0.5)}},
        attacks=[AttackResult(HOSTILE, "", "step", HOSTILE, {HOSTILE: curve})],
    ).table()


def a_claim() -> Table:
    return table(Claim("", "", HOSTILE, (HOSTILE,), {HOSTILE: (HOSTILE,)}, "1.2x", "", (), ()))


def a_sweep() -> Table:
    row = {"bed": HOSTILE, "contender": HOSTILE, "kind": "method", "seed": 0}
    good = {**row, "values": {HOSTILE: 1.0}, "cost": 1.0}
    return tables([good, {**row, "contender": "other", "error": HOSTILE}])[0]


@pytest.mark.parametrize("make", [a_report, a_claim, a_sweep])
@pytest.mark.parametrize("ours", [True, False], ids=["our console", "a user's own"])
def test_tables_are_plain_text_on_any_console(terminal, make, ours):
    if ours:
        sent = printed(terminal, make())
    else:
        own = Console(file=io.StringIO(), width=400)
        own.print(make())
        sent = own.file.getvalue()
        sent = re.sub(r"\x1b\[[0-9;]*m", "", sent)
        assert not any(is_a_sign(character) for character in sent.replace("\n", ""))
    assert sent.count(SHOWN) >= 3


def test_notices_and_foreign_warnings_are_written_out(monkeypatch, capsys):
    said = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: said.append(str(message)))
    with output.plain_notices():
        warnings.warn(HOSTILE + "\nmore", Notice, stacklevel=1)
        warnings.warn(HOSTILE + "\nmore", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == f"unwrite: {SHOWN} more\n"
    assert said == [f"{SHOWN}\nmore"]


def test_an_error_nobody_expected_is_written_out_too(capsys):
    try:
        raise ValueError(f"{HOSTILE}\nmore")
    except ValueError as error:
        output.show_traceback(ValueError, error, error.__traceback__)
    assert capsys.readouterr().err.endswith(f"ValueError: {SHOWN}\nmore\n")


def test_a_process_of_our_own_shows_its_tracebacks_so():
    code = """
import unwrite.cli as cli
class App:
    def __call__(self, arguments):
        raise ValueError(chr(27) + "[2J")
cli.commands = App
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(b"ValueError: \\x1b[2J")


@pytest.mark.parametrize("a_terminal", [False, True])
def test_progress_writes_out_what_it_is_called(monkeypatch, a_terminal):
    class Stream(io.StringIO):
        def isatty(self):
            return a_terminal

    monkeypatch.setattr(sys.modules["unwrite.runs.progress"], "DELAY", 0.0)
    monkeypatch.setattr("sys.stderr", stream := Stream())
    with progress(3, f"scoring {HOSTILE}\nb") as bar:
        bar.say(f"at {HOSTILE}\nb")
        bar.advance()
        time.sleep(0.15)
        bar.advance()
    sent = re.sub(r"\x1b\[[A-Z]", "", stream.getvalue())  # tqdm's own
    assert f"scoring {SHOWN} b" in sent
    assert a_terminal or f"at {SHOWN} b" in sent
    assert not any(is_a_sign(character) for character in sent.replace("\n", "").replace("\r", ""))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_json_means_the_same_and_holds_no_sign(monkeypatch, encoding):
    value = {HOSTILE: "".join(map(chr, range(0x110))) + "\u2028\u2067 \u65e5 \U0001f469"}
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", stream)
    output.print_json(value)
    stream.flush()
    sent = stream.buffer.getvalue().decode(encoding)
    assert json.loads(sent) == value
    assert not any(is_a_sign(character) for character in sent.replace("\n", ""))
    assert ("\u65e5" in sent) == (encoding == "utf-8")


def test_standard_output_of_any_encoding_is_written_to(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    output.write_anything()
    output.write("\u65e5\n")
    assert stream.buffer.getvalue() == b"\\u65e5\n"
    monkeypatch.setattr("sys.stdout", io.StringIO())
    output.write_anything()


def calls(tree: ast.AST):
    """(the name called, the call) for every call in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            yield (function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")), node


PRINTERS = ("cli/output.py", "data/text/author_lives.py")  # the second writes a file that ships, and is no command
MARKUP = re.compile(r"\[/?(bold|dim|italic|red|green|yellow|blue|link)\b[^]]*\]|\[/\]")


def faults(source: str, prints: bool = False):
    """What in a module could send a terminal more than text."""
    tree = ast.parse(source)
    for name, call in calls(tree):
        whole = ast.unparse(call.func)
        if name in ("from_markup", "from_ansi", "Markdown") and "hyperlinks=False" not in ast.unparse(call):
            yield f"{call.lineno}: {name}"
        if any(k.arg in ("markup", "emoji") and ast.unparse(k.value) != "False" for k in call.keywords):
            yield f"{call.lineno}: markup"
        if not prints and (
            whole in ("print", "Console") or whole.endswith((".Console", "stdout.write", "stderr.write"))
        ):
            yield f"{call.lineno}: {whole} beside cli/output.py"
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and MARKUP.search(node.value):
            yield f"{node.lineno}: markup in a text; colour is asked for by output.label"


def test_one_module_prints_and_none_asks_for_markup():
    names = {file.relative_to(SOURCE).as_posix(): file for file in SOURCE.rglob("*.py")}
    for name, file in names.items():
        assert list(faults(file.read_text(encoding="utf-8"), name in PRINTERS)) == [], name


@pytest.mark.parametrize(
    "line",
    [
        "print(name)",
        "sys.stderr.write(name)",
        "console = rich.console.Console()",
        "console().print(f'[dim]{name}[/]')",
        "console().print(f'{name}[bold red]!')",
        "console().print(name, markup=True)",
        "Text.from_markup(name)",
        "Markdown(name)",
    ],
)
def test_each_way_round_the_one_printer_is_seen(line):
    assert list(faults(line))
