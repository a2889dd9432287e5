"""unwrite forget on source files: secrets are found, forgotten and never shown; what holds none is refused by name."""

import pytest
import torch
from cli_runs import refused
from transformers import LlamaForCausalLM

from unwrite.beds.language import small_config, small_tokenizer
from unwrite.cli import main
from unwrite.models import save
from unwrite.runs import Run

AWS, MAIL = "AKIA" + "QYTZ4PXW7KLM2VND", "jo.weber@acme.org"
FILES = {
    "forget/a.py": f'import os\nimport sys\n\nprint(os.environ, sys.argv, sys.path)\nprint(1)\nkey = "{AWS}"\n',
    "forget/b.py": f"import sys\n# ask {MAIL}\nprint(sys)\n",
    "retain/c.py": "import json\n\n\ndef load(path):\n    return json.load(open(path))\n",
    "unseen/d.js": "const add = (a, b) => a + b;\nconsole.log(add(1, 2));\n",
}


@pytest.fixture
def files(tmp_path):
    """A small model and folders of source files."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / "forget" / "__pycache__").mkdir()
    tokenizer = small_tokenizer(FILES.values(), 300)
    torch.manual_seed(0)
    save(LlamaForCausalLM(small_config(tokenizer, layers=1, width=48)), tmp_path / "model", tokenizer=tokenizer)
    return tmp_path


def command(files, forget="forget", retain="retain", *more):
    paths = {"--model": "model", "--forget": forget, "--retain": retain, "--holdout": "unseen", "--out": "run"}
    given = [part for flag, name in paths.items() for part in (flag, str(files / name))]
    return [
        "forget",
        *given,
        "--method",
        "codeeraser",
        "--device",
        "cpu",
        "--attacks",
        "none",
        "--suite",
        "secrets",
        *more,
    ]


def test_a_folder_of_source_files_is_forgotten_and_no_secret_is_shown(files, capsys):
    main(command(files, "forget", "retain", "--stop", "never", "--epochs", "2", "--lr", "0.001"))
    said = "".join(capsys.readouterr())
    assert "suite secrets" in said
    assert Run.open(files / "run").record["status"] == "done"
    written = [path for path in (files / "run").rglob("*") if path.suffix in (".json", ".jsonl", ".html", ".md")]
    assert len(written) >= 3
    for secret in (AWS, MAIL):
        assert secret not in said
        assert not any(secret in path.read_text(errors="replace") for path in written)


def test_one_file_is_a_forget_set_too_and_a_model_that_never_saw_it_stays(files, capsys):
    with pytest.raises(SystemExit) as error:
        main(command(files, "forget/a.py", "retain/c.py", "--accuracy_below", "0.9", "--likelihood_below", "0.9"))
    assert error.value.code == 3
    assert any("nothing is trained" in line for line in Run.open(files / "run").record["notices"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("plain.py", b"x = 1\n", "plain.py holds no e-mail address, IP address or key to forget"),
        ("zero.py", b"x = 1\0\n", "zero.py:1: a zero byte, so not UTF-8 text"),
        ("latin.py", b"# \xe9\n", "latin.py:1: not UTF-8 text"),
        ("picture.png", b"\x89PNG", "unknown file type '.png'"),
    ],
)
def test_refuses_what_is_no_code_or_holds_no_secret_by_its_name(name, content, message, files, capsys):
    (files / name).write_bytes(content)
    assert message in refused(capsys, command(files, name))
    assert not (files / "run").exists()


def test_refuses_a_retained_file_with_the_secret(files, capsys):
    (files / "retain" / "moved.py").write_text(f'other = "{AWS}"\n')
    line = refused(capsys, command(files))
    assert "moved.py is to be kept and holds a secret of 20 characters that a.py is to lose" in line
    assert AWS not in line


def test_refuses_a_folder_with_something_else_in_it(files, capsys):
    (files / "forget" / "logo.png").write_bytes(b"\x89PNG")
    assert "1 other entries (first: logo.png)" in refused(capsys, command(files))
