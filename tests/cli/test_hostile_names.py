"""Names, rows and answers that hold markup, links and escape sequences: every command shows them and obeys none."""

import json
import os
import re

import pytest
from cli_runs import command, rows, write_rows

from conftest import WORDS, make_llama, make_tokenizer
from unwrite.audit.report.report import Report
from unwrite.cli import main, output
from unwrite.errors import UnwriteError
from unwrite.models import save
from unwrite.runs import Run, hash_model
from unwrite.terminal import visible

EVIL = "[/b][link=http://x.example]:smile:\x1b]8;;http:x.example\x07\x1b[8m\x9b8m\u202e"
NAME = EVIL.replace("/", "|")  # where it is one file
SIGNS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
OWN = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[\d*[ABCDGJK]|\r")  # colours, and what a live picture needs


@pytest.fixture(params=[False, True], ids=["a pipe", "a terminal"])
def sent(request, capsys, monkeypatch):
    """Runs a command and gives (status, what it printed), once nothing of the input was obeyed."""
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1") if request.param else monkeypatch.delenv("FORCE_COLOR", raising=False)
    output._terminal.cache_clear()

    def run(*arguments: str) -> tuple[int, str]:
        status = 0
        try:
            main(list(arguments))
        except SystemExit as end:
            status = int(end.code or 0)
        read = capsys.readouterr()
        for stream in (read.out, read.err):
            for forbidden in ("\x1b]", "\x1b[8m", "\x9b", "\x1b\\", *([] if request.param else ["\x1b"])):
                assert forbidden not in stream, stream
            assert not SIGNS.search(OWN.sub("", stream) if request.param else stream), stream
        return status, OWN.sub("", read.out + read.err)

    yield run
    output._terminal.cache_clear()


def hostile_tokenizer():
    """The tiny tokenizer, every word of which an escape sequence goes before."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = make_tokenizer()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = {(word if word in names.values() else f"{EVIL}{word}"): i for i, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    tokenizer.chat_template = plain.chat_template
    return tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model whose every word is hostile, and rows with hostile columns, in a folder of such a name."""
    folder = tmp_path_factory.mktemp("made") / EVIL
    folder.mkdir(parents=True)
    save(make_llama(), folder / "model", tokenizer=hostile_tokenizer())
    for name, thing in (("forget", "book"), ("retain", "river")):
        write_rows(folder / f"{NAME}{name}.jsonl", rows(thing, **{EVIL: EVIL}))
    return folder


def on(made, *more: str) -> list[str]:
    """unwrite forget there."""
    files = {name: str(made / f"{NAME}{name}.jsonl") for name in ("forget", "retain")}
    return command(made, "--forget", files["forget"], "--retain", files["retain"], *more)


@pytest.fixture(scope="module")
def done(made):
    """A finished run there, whose model after is another one."""
    run = Run.start(made / "done[/b]", {})
    save(make_llama(seed=1), run.folder / "model", tokenizer=hostile_tokenizer())
    hashes = [hash_model(make_llama(seed=seed)) for seed in (0, 1)]
    source = {"name": str(made / "model"), "dtype": "float32", "weights": hashes[0]}
    run.update(status="done", source=source, model={"weights": hashes[1]})
    return run.folder


def test_forget_ends_well_and_says_where_all_is(sent, made, tmp_path):
    out = tmp_path / "a[" / "b]c" / NAME
    status, said = sent(*on(made, "--out", str(out)))
    assert status == 0
    assert f"report  {visible(str(out))}/report.html" in said
    assert f"chat    unwrite chat '{visible(str(out))}'" in said
    assert f"Columns of {visible(str(made))}" in said  # the notice of what was not read
    assert visible(EVIL) in said
    page = (out / "report.html").read_text()
    assert not SIGNS.search(page)
    assert visible(EVIL)[-20:] in page
    assert 'href="http' not in page
    assert json.loads((out / "run.json").read_text())["status"] == "done"


def test_audit_shows_the_sets_name(sent, made, tmp_path):
    forget = str(made / f"{NAME}forget.jsonl")
    given = ("audit", str(made / "model"), "--forget", forget, "--attacks", "none", "--device", "cpu")
    status, said = sent(*given, "--out", str(tmp_path / NAME))
    assert status == 0
    assert f"{visible(NAME)}forget" in said.replace("\n", "")  # the title, over more than one line
    assert f"report  {visible(str(tmp_path / NAME))}/report.html" in said


def test_chat_shows_what_the_model_writes(sent, done):
    status, said = sent("chat", str(done), "--question", EVIL, "--max-new-tokens", "3")
    assert status == 0
    assert visible(EVIL) in said


def test_chat_asks_and_answers_line_by_line(sent, done, monkeypatch):
    asked = iter([EVIL, ""])
    monkeypatch.setattr("builtins.input", lambda *_: next(asked))
    status, said = sent("chat", str(done), "--max-new-tokens", "3")
    assert status == 0
    assert "you >" in said
    assert visible(EVIL) in said


@pytest.mark.parametrize(
    "how", [(), ("--strategy", "prompt-lookup"), ("--compare", "plain,prompt-lookup"), ("--json",)]
)
def test_generate_shows_what_the_model_writes(sent, made, how):
    given = ("generate", "who wrote the book ?", "--model", str(made / "model"), "--max-new-tokens", "4", *how)
    status, said = sent(*given)
    assert status == 0
    assert (visible(EVIL) if "--json" not in how else "\\u001b]8;;http:x.example\\u0007") in said


NO_FILE = f"/nowhere/{EVIL}.jsonl"
REFUSED = [
    ("forget", "--model", "{model}", "--forget", NO_FILE, "--out", "{out}"),
    ("forget", "--model", f"/nowhere/{EVIL}", "--forget", "{forget}", "--out", "{out}"),
    ("forget", "--model", EVIL, "--forget", "{forget}", "--out", "{out}"),
    ("forget", "--model", "{model}", "--forget", EVIL, "--out", "{out}"),
    (
        "forget",
        "--model",
        "{model}",
        "--forget",
        "{forget}",
        "--out",
        "{out}",
        "--columns",
        f"question=x{EVIL},answer=answer",
    ),
    ("forget", "--model", "{model}", "--forget", "{forget}", "--out", "{out}", "--method", EVIL),
    ("forget", "--model", "{model}", "--forget", "{forget}", "--out", "{out}", "--suite", EVIL),
    ("forget", "--model", "{model}", "--forget", "{forget}", "--out", "{out}", "--attacks", EVIL),
    ("forget", "--model", "{model}", "--forget", "{forget}", "--out", "{out}", "--device", EVIL),
    ("forget", "--model", "{model}", "--forget", "{forget}", "--out", "{out}", "--beta", EVIL),
    ("forget", "--model", "{model}", "--forget", "{forget}", "--out", "{out}", f"--{EVIL}", EVIL),
    ("forget", "--model", "{model}", "--forget", "{forget}", "--out", "{out}", "--dtype", EVIL),
    ("audit", EVIL, "--forget", "{forget}"),
    ("audit", "{model}", "--forget", "{forget}", "--before", f"./{EVIL}"),
    ("chat", f"./{EVIL}"),
    ("generate", EVIL, "--model", f"./{EVIL}"),
    ("generate", EVIL, "--model", f"{EVIL}.gguf"),
    ("generate", EVIL, "--model", "{model}", "--strategy", EVIL),
    ("generate", EVIL, "--model", "{model}", "--draft-model", f"./{EVIL}", "--strategy", "rsd"),
    ("generate", EVIL, "--model", "{model}", "--sampler", EVIL),
    ("generate", EVIL, "--model", "{model}", "--sampler", f"threshold(threshold={EVIL})"),
    ("generate", EVIL, "--model", "{model}", "--sampler", "dual", "--steps", EVIL),
    ("generate", EVIL, "--model", "{model}", "--sampler", "dual", "--guidance", EVIL),
    ("models", "add", EVIL),
    ("models", "requantise", f"{EVIL}.gguf", "--to", "f16"),
    ("reproduce", EVIL),
    ("sweep", "--methods", EVIL, "--beds", "digits/class", "--out", "{out}"),
    ("sweep", "--methods", f"scrub:{EVIL}=1", "--beds", "digits/class", "--out", "{out}"),
    ("sweep", "--methods", "scrub", "--beds", EVIL, "--out", "{out}"),
    ("docs", "--root", f"./{EVIL}"),
    ("demo", "--model", f"./{EVIL}", "--out", "{out}"),
    ("bench", "diffusion", "--bed", f"./{EVIL}"),
    ("bench", EVIL),
    (EVIL,),
]


@pytest.mark.parametrize("given", REFUSED, ids=lambda given: visible("-".join(given))[:60])
def test_every_refusal_shows_the_name_it_is_about(sent, made, tmp_path, given):
    forget = str(made / f"{NAME}forget.jsonl")
    places = {"{model}": str(made / "model"), "{forget}": forget, "{out}": str(tmp_path / "out")}
    status, said = sent(*(places.get(word, word) for word in given))
    assert status in (1, 2)
    assert "Traceback" not in said
    lines = said.strip().splitlines()  # notices, and the refusal in one line or in the frame of wrong arguments
    assert lines[-1].startswith("╰") or [line for line in lines if not line.startswith("unwrite: ")] in ([], LOADING)
    assert "[/b][link" in lines[-1] or lines[-1].startswith("╰")


LOADING = [f"loading {visible('./' + EVIL)} ..."]


def test_a_name_that_is_no_text_is_refused(sent, tmp_path, monkeypatch):
    name = os.fsdecode(b"a\xff")
    assert sent("chat", name) == (2, "unwrite: a\\udcff is no UTF-8 text. Rename it, or use a link of another name.\n")
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    assert sent("chat", "run")[0] == 2


@pytest.mark.parametrize(
    ("command", "flag", "value"),
    [
        (("demo",), "--seed", "-1"), (("demo",), "--seed", str(2**32)), (("bench", "diffusion"), "--seed", "-1"),
        (("bench", "diffusion"), "--prompts", "0"), (("bench", "unlearn-step"), "--batch", "0"), (("bench", "importance"), "--pairs", "-3"),
        (("reproduce", "npo"), "--seeds", "0"),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_refused_at_once(sent, tmp_path, monkeypatch, command, flag, value):
    monkeypatch.chdir(tmp_path)
    status, said = sent(*command, flag, value)
    assert status == 2
    assert re.fullmatch(rf"unwrite: {flag} is \S+; it must be at least [01].*\.\n", said)
    assert not list(tmp_path.iterdir())


def test_a_cache_whose_name_is_no_text_is_refused(sent, made, tmp_path, monkeypatch):
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / os.fsdecode(b"a\xff")))
    status, said = sent(*on(made, "--out", str(tmp_path / "out")))
    assert status == 2
    assert said.strip().splitlines()[-1].endswith("its name is no UTF-8 text. Set UNWRITE_CACHE to another.")
    assert not (tmp_path / os.fsdecode(b"a\xff")).exists()


def test_files_in_a_folder_may_have_names_that_are_no_text(sent, made, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / os.fsdecode(b"a\xff.txt")).write_text("the old book .")
    given = ("audit", str(made / "model"), "--forget", str(texts), "--attacks", "none", "--device", "cpu")
    assert sent(*given, "--out", str(tmp_path / "out"))[0] == 0
    assert Report.load(tmp_path / "out").split == "texts"


def test_a_record_refuses_what_is_no_text(tmp_path):
    with pytest.raises(UnwriteError, match=r"'.*a\\udcff.*' is no UTF-8 text, which a record needs"):
        Run.start(tmp_path / "run", {"model": os.fsdecode(b"a\xff")})
    assert not (tmp_path / "run" / "run.json").exists()
