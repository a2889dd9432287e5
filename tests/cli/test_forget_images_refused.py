"""What unwrite forget --images refuses: one line, and nothing is written."""

import pytest
from cli_runs import refused
from picture_runs import command, draw, resnet

from helpers.pictures import contents
from unwrite.cli import main


@pytest.fixture
def files(tmp_path):
    draw(tmp_path / "pictures" / "train")
    draw(tmp_path / "pictures" / "test", 4, seed=1)
    resnet(tmp_path / "model")
    return tmp_path


def one_class(files):
    for name in ("amber", "cyan"):
        for part in ("train", "test"):
            for path in (files / "pictures" / part / name).iterdir():
                path.unlink()
            (files / "pictures" / part / name).rmdir()


def one_picture(files):
    one_class(files)
    for path in sorted((files / "pictures/train/blue").iterdir())[1:]:
        path.unlink()


def strange_class(files):
    (files / "pictures/train/amber").rename(files / "pictures/train/azure")


def no_classes(files):
    (files / "flat").mkdir()
    (files / "pictures/train/blue/anna_00.png").rename(files / "flat" / "1.png")


REFUSALS = [
    (None, ("--by", "class", "bleu"), "unknown class 'bleu'. Did you mean 'blue'?"),
    (None, ("--by", "identity", "nobody"), "unknown identity 'nobody'"),
    (None, ("--by", "file", "train/blue/none.png"), "unknown picture 'train/blue/none.png'"),
    (None, ("--by", "file", ",".join(map(str, range(25)))), "indices and"),
    (None, ("--by", "file", "24"), "has 24 pictures and none of index 24"),
    (None, ("--by", "file", "-1"), "none of index -1"),
    (None, ("--by", "class", ","), "--by class names nothing"),
    (None, ("--by", "class", "amber", "bleu"), "unknown class 'bleu'. Did you mean 'blue'?"),
    (None, ("--by", "class", "amber,blue,cyan"), "Leave at least one row to keep"),
    (None, ("--test", "0.2"), "has test pictures of its own, so --test has no meaning"),
    (None, ("--holdout", "1.5"), "--holdout is 1.5; it must be above 0 and below 1"),
    (None, ("--holdout", "nowhere"), "--holdout is nowhere, which is no folder and no share"),
    (None, ("--images", "nowhere"), "there is no folder nowhere"),
    (None, ("--model", "nowhere"), "there is no model nowhere"),
    (None, ("--method", "dpo"), "dpo forgets texts, not images. Use one of "),
    (None, ("--method", "eu-k"), "eu-k needs the recipe that trained the model and is used from Python. Use one of "),
    (None, ("--method", "dm-direct"), "dm-direct leaves the weights as they are and is used from Python"),
    (None, ("--method", "scrubb"), "unknown method 'scrubb'. Did you mean 'scrub'?"),
    (None, ("--method", "head-only", "--betta", "1"), "betta"),
    (None, ("--lora", "8"), "--lora is for texts, and --images is given"),
    (None, ("--retain", "x"), "--retain is for texts, and --images is given"),
    (None, ("--suite", "tofu"), "--suite is for texts"),
    (None, ("--device", "tpu"), "device 'tpu' cannot be used here"),
    (None, ("--lr", "-1"), "--lr is -1; it must be above 0"),
    (None, ("--require", "nonsense<=1"), "nonsense"),
    (one_class, (), "Leave at least one row to keep"),
    (one_picture, (), "Leave at least one row to keep"),
    (strange_class, (), "azure is none of the model's 3 classes (amber, blue, cyan)"),
    (no_classes, ("--images", "flat"), "1.png lies in no class"),
]


@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
@pytest.mark.parametrize(("change", "more", "message"), REFUSALS)
def test_what_is_wrong_is_one_line_and_nothing_is_written(files, capsys, monkeypatch, change, more, message):
    monkeypatch.chdir(files)
    if change is not None:
        change(files)
    there = contents(files)
    with pytest.raises(SystemExit) as ended:
        main(command(files, *more))
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert all(line.startswith("unwrite: ") for line in lines)
    assert contents(files) == there


def test_texts_and_images_are_told_apart(files, capsys):
    assert "--forget (texts) and --images (pictures) are two different" in refused(
        capsys, command(files, "--forget", "landmarks")
    )
    assert "neither is given" in refused(capsys, command(files, without=("--images", "--by")))
    assert "--by says no kind with names" in refused(capsys, command(files, without=("--by",)))
    assert "--by color blue says no kind with names" in refused(capsys, command(files, "--by", "color", "blue"))
    assert "--by class says no kind with names" in refused(capsys, command(files, "--by", "class"))
    texts = ["forget", "--forget", "landmarks", "--model", "x", "--out", str(files / "run")]
    assert "--weights is for images, and --forget is given" in refused(capsys, [*texts, "--weights", "w"])
    assert "--by is 'class'" in refused(capsys, [*texts, "--method", "smooth", "--by", "class"])  # a field of smooth
    assert "unknown field of npo '--by'" in refused(capsys, [*texts, "--method", "npo", "--by", "sam"])


@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
def test_too_many_pictures_for_the_memory_are_refused(files, capsys, monkeypatch):
    from unwrite.models import agreement

    monkeypatch.setattr(agreement, "free_memory", lambda: 1000.0)
    assert "36 pictures of [3, 16, 16] take about" in refused(capsys, command(files))
