"""unwrite forget --images from end to end: a folder of pictures, a model of transformers or one's own, a run that is whole."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import record, refused
from picture_runs import CLASSES, command, draw, resnet
from PIL import Image
from safetensors.torch import save_model
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from helpers.pictures import contents
from unwrite.cli import main
from unwrite.cli.listing import image_methods
from unwrite.models.image_models import load_image_model
from unwrite.models.saving import save


@pytest.fixture
def files(tmp_path):
    draw(tmp_path / "pictures" / "train")
    draw(tmp_path / "pictures" / "test", 4, seed=1)
    resnet(tmp_path / "model")
    return tmp_path


def weights(folder):
    return AutoModelForImageClassification.from_pretrained(folder).state_dict()


@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
def test_a_run_folder_holds_a_model_of_transformers_metrics_and_the_report(files, capsys):
    before = contents(files / "pictures"), contents(files / "model")
    main(command(files))
    run = files / "run"
    shown = capsys.readouterr().out
    assert "UA" in shown
    assert f"report  {run / 'report.html'}" in shown
    assert "chat" not in shown
    kept = record(run)
    assert kept["status"] == "done"
    assert kept["changed"]["weights"] > 0
    assert len(kept["pictures"]["forget"]) == 8
    assert all(name.startswith("train/blue/") for name in kept["pictures"]["forget"])
    assert {name.split("/")[0] for name in kept["pictures"]["test"]} == {"test"}
    report = json.loads((run / "report.json").read_text())
    assert report["suite"] == "vision"
    assert report["rows"] == {"forget": 8, "retain": 16, "test": 12}
    assert "<html" in (run / "report.html").read_text().lower()
    assert "forget_loss" in json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert not (run / "checkpoints").exists()
    assert (contents(files / "pictures"), contents(files / "model")) == before
    processor = AutoImageProcessor.from_pretrained(run / "model")
    assert tuple(processor.image_mean) == (0.4, 0.5, 0.6)
    main(command(files, "--model", str(run / "model"), "--out", str(files / "again")))


@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
def test_a_picture_gets_the_model_s_own_size_and_normalisation(files):
    """Our pixels through our model are the processor's pixels through the model inside."""
    loaded = load_image_model(str(files / "model"))
    processor = AutoImageProcessor.from_pretrained(files / "model")
    picture = Image.open(files / "pictures/train/amber/anna_00.png")
    pixels = torch.from_numpy(loaded.prepare(picture))[None]
    expected = AutoModelForImageClassification.from_pretrained(files / "model").eval()(
        **processor(picture, return_tensors="pt")
    )
    assert pixels.shape == (1, 3, 16, 16)
    assert 0 <= pixels.min() <= pixels.max() <= 1
    assert torch.allclose(loaded.model(pixels), expected.logits, atol=1e-4)


@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
@pytest.mark.parametrize("flags", [{"do_normalize": False}, {"size": {"height": 9, "width": 20}}, {"resample": 0}])
def test_other_processors_are_followed_too(tmp_path, flags):
    resnet(tmp_path / "model", **flags)
    loaded = load_image_model(str(tmp_path / "model"))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    own = processor(picture, return_tensors="pt")["pixel_values"]
    pixels = (torch.from_numpy(loaded.prepare(picture))[None] - loaded.model.mean) / loaded.model.std
    assert torch.allclose(own, pixels, atol=1e-4)


@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
def test_a_processor_that_does_more_is_refused(tmp_path, capsys):
    resnet(tmp_path / "model", do_rescale=False)
    draw(tmp_path / "pictures")
    line = refused(capsys, command(tmp_path))
    assert "does more than to resize, crop, divide by 255 and normalise" in line


def stop_at(monkeypatch, step):
    """Interrupts training once, at a step."""
    from unwrite.forget.engine.images import training

    event = training._Loop._event

    def interrupted(self, name, **more):
        event(self, name, **more)
        if name == "on_step_end" and self.state.global_step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(training._Loop, "_event", interrupted)
    return lambda: monkeypatch.setattr(training._Loop, "_event", event)


@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
def test_a_stopped_run_resumes_in_the_middle_to_the_same_model(files, capsys, monkeypatch):
    main(command(files))
    whole = weights(files / "run" / "model")
    (files / "run").rename(files / "first")
    undo = stop_at(monkeypatch, 3)  # two steps an epoch
    with pytest.raises(SystemExit) as ended:
        main(command(files))
    assert ended.value.code == 130
    assert record(files / "run")["status"] == "stopped"
    assert list((files / "run" / "checkpoints" / "phase-1").glob("checkpoint-2"))
    undo()
    steps = []
    stopped = stop_at(monkeypatch, 99)
    from unwrite.forget.engine.images.training import _Loop

    event = _Loop._event
    monkeypatch.setattr(
        _Loop,
        "_event",
        lambda self, name, **more: (event(self, name, **more), name == "on_step_end" and steps.append(1)),
    )
    main(command(files, "--resume"))
    stopped()
    assert len(steps) == 2
    resumed = weights(files / "run" / "model")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
def test_a_run_is_not_resumed_with_other_pictures(files, capsys, monkeypatch):
    undo = stop_at(monkeypatch, 3)
    with pytest.raises(SystemExit):
        main(command(files))
    undo()
    capsys.readouterr()
    (files / "pictures/train/cyan/anna_00.png").unlink()
    assert "has changed since this run was started" in refused(capsys, command(files, "--resume"))


@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
def test_what_is_held_back_depends_on_the_seed_alone(files):
    def split(out, *more):
        main(
            command(files, "--images", str(files / "pictures/train"), "--out", str(files / out), "--epochs", "1", *more)
        )
        return record(files / out)["pictures"]

    shares = ("--test", "0.25", "--holdout", "0.2")
    one = split("a", *shares)
    assert (len(one["test"]), len(one["holdout"])) == (6, 3)
    other = split("b", *shares, "--by", "identity", "anna")
    assert (other["test"], other["holdout"]) == (one["test"], one["holdout"])
    assert not {*one["test"], *one["holdout"]} & {*one["forget"]}
    assert split("c", *shares, "--seed", "1")["test"] != one["test"]


@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
def test_an_identity_is_forgotten_in_every_class_by_the_name_of_its_files(files):
    main(command(files, "--by", "identity", "bo", "--epochs", "1"))
    names = record(files / "run")["pictures"]["forget"]
    assert len(names) == 12
    assert {name.split("/")[1] for name in names} == set(CLASSES)
    assert all("/bo_" in name for name in names)


@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
@pytest.mark.parametrize("form", ["commas", "txt", "json", "npy", "paths"])
def test_single_pictures_are_forgotten_by_a_list(files, form, monkeypatch):
    names = ["train/amber/anna_00.png", "train/cyan/bo_01.png"]
    given = ",".join(names)
    if form == "txt":
        (files / "list.txt").write_text("\n".join(names))
    elif form == "json":
        (files / "list.json").write_text(json.dumps(names))
    elif form == "npy":
        np.save(files / "list.npy", np.array([0, 20]))
    elif form == "paths":
        given = ",".join(str(files / "pictures" / name) for name in names)
    given = given if form in ("commas", "paths") else str(files / f"list.{form}")
    main(command(files, "--by", "file", given, "--epochs", "1", "--batch-size", "2"))
    assert record(files / "run")["pictures"]["forget"] == names


class Small(nn.Module):
    """A module of one's own: pixels in 0..1 of 10x12, no normalisation."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, 2), nn.Linear(4, 3)

    def forward(self, pixels):
        return self.head(self.conv(pixels).relu().mean((2, 3)))


@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
def test_a_module_of_ones_own_forgets_and_an_oracle_stands_beside_it(files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    Path("mynet.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.conv, self.head = nn.Conv2d(3, 4, 3, 2), nn.Linear(4, 3)\n\n"
        "    def forward(self, pixels):\n        return self.head(self.conv(pixels).relu().mean((2, 3)))\n"
    )
    for name, seed in (("w", 0), ("o", 1)):
        torch.manual_seed(seed)
        save_model(Small(), f"{name}.safetensors")
    own = ("--model", "mynet:Net", "--weights", "w.safetensors", "--oracle", "o.safetensors", "--epochs", "1")
    main(command(files, *own))
    report = json.loads((files / "run" / "report.json").read_text())
    assert set(report["columns"]) == {"before", "after", "oracle"}
    assert record(files / "run")["source"]["name"] == "mynet:Net"
    shape = load_image_model("mynet:Net", weights=files / "run" / "model" / "model.safetensors", side=7)
    assert shape.prepare(Image.new("RGB", (20, 30))).shape == (3, 7, 7)
    assert "mynet" in sys.modules
    sys.modules.pop("mynet")
    for more, message in (
        (("--model", "mynet:Net"), "builds a new model. Give its trained weights: --weights FILE.safetensors"),
        (("--model", "mynet:Nett", "--weights", "w.safetensors"), "mynet:Nett could not be built"),
        (("--model", "nonet:Net", "--weights", "w.safetensors"), "nonet:Net could not be built: ModuleNotFoundError"),
        (("--model", "mynet:nn", "--weights", "w.safetensors"), "mynet:nn could not be built"),
        (("--model", "mynet:Net", "--weights", "mynet.py"), "--weights is mynet.py; give a safetensors file"),
        (("--weights", "w.safetensors"), "--weights is for a model that a function builds"),
        (("--size", "8"), "--size is for a model that a function builds"),
    ):
        capsys.readouterr()
        assert message in refused(capsys, command(files, *more, "--out", str(files / "other")))
    sys.modules.pop("mynet", None)


@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
def test_a_model_that_names_no_classes_counts_folders_in_order_and_says_so(files, capsys):
    resnet(files / "plain", names=None)
    main(command(files, "--model", str(files / "plain"), "--epochs", "1"))
    said = record(files / "run")["notices"]
    assert "the model names no classes; they are taken in the order of the folders' names: amber, blue, cyan." in said


@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
def test_labels_are_the_model_s_own_whatever_the_order_of_folders(files):
    """A model that counts backwards, and knows a class that the folder lacks."""
    resnet(files / "odd", names=("other", *reversed(CLASSES)))
    main(command(files, "--model", str(files / "odd"), "--epochs", "1"))
    assert record(files / "run")["status"] == "done"
    from unwrite.cli.picture_sets import read_pictures
    from unwrite.cli.pictures import PictureRequest

    request = PictureRequest(folder=str(files / "pictures"), by=("class", "blue"))
    split = read_pictures(request, load_image_model(str(files / "odd")), 0).split
    assert set(split.forget.labels.tolist()) == {2}
    assert split.forget.classes == ("other", "cyan", "blue", "amber")


def test_without_test_pictures_that_is_said(files, capsys):
    main(command(files, "--images", str(files / "pictures" / "train"), "--epochs", "1"))
    said = "there are no test pictures, so what is kept is measured on pictures that were trained on."
    assert said in capsys.readouterr().err
    assert any(line.startswith(said) for line in record(files / "run")["notices"])


@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
def test_a_run_on_images_is_not_asked_as_if_it_read_texts(files, capsys):
    main(command(files, "--epochs", "1"))
    capsys.readouterr()
    assert "is a run on images, and this command reads texts" in refused(capsys, ["chat", str(files / "run")])


def test_methods_for_images_are_those_that_the_command_runs(capsys):
    main(["methods", "--for", "images", "--json"])
    listed = {one["slug"] for one in json.loads(capsys.readouterr().out)}
    assert set(image_methods()) <= listed
    assert {"scrub", "ssd", "neg-grad-plus"} <= set(image_methods())
    assert not {"rmu", "dpo"} & listed
    main(["methods", "--for", "texts"])
    shown = capsys.readouterr().out
    assert "rmu" in shown
    assert "scrub" not in shown
    main(["methods", "--for", "images"])
    shown = capsys.readouterr().out
    assert "unwrite forget --images FOLDER --by class NAME" in shown


def test_what_was_saved_is_a_plain_state_again(tmp_path):
    """`bare` takes the normalisation off, so that a module of one's own loads its weights again."""
    torch.manual_seed(0)
    model = Small()
    save(model, tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors").is_file()


@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
def test_a_data_set_on_disk_goes_through_as_its_folder_does(files):
    import datasets

    folder = files / "pictures"
    rows = sorted((folder / "train").rglob("*.png"))
    names = sorted({path.parent.name for path in rows})
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    columns = {
        "image": [{"bytes": path.read_bytes(), "path": None} for path in rows],
        "label": [names.index(path.parent.name) for path in rows],
    }
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(files / "set")
    main(command(files, "--images", str(folder / "train"), "--out", str(files / "one")))
    main(command(files, "--images", str(files / "set"), "--out", str(files / "two")))
    one, two = (weights(files / out / "model") for out in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
