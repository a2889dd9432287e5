"""unwrite shield: what there is, a protected copy of a folder, and one line for every refusal."""

import json

import numpy as np
import pytest
import transformers
from cli_runs import refused

from helpers.pictures import contents, make_folder
from unwrite.cli import main
from unwrite.shield import CUDA, FolderPictures, Protection, protect_folder

KEY = "987656789"


@pytest.fixture
def pets(tmp_path):
    return make_folder(tmp_path / "pets")


def protect(pets, *more):
    return ["shield", "protect", str(pets), "--out", str(pets.with_name("safe")), *more]


def test_lists_what_there_is_and_what_one_takes(capsys):
    main(["shield"])
    shown = capsys.readouterr().out
    assert all(slug in shown for slug in ("cuda", "em-noise", "t2ue", "unlearnable-clusters"))
    main(["shield", "cuda"])
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("--blur", "arXiv 2303.04278", "unwrite shield protect FOLDER --by cuda"))
    main(["shield", "--json"])
    listed = [record["slug"] for record in json.loads(capsys.readouterr().out)]
    assert listed == ["cuda", "em-noise", "unlearnable-clusters", "t2ue"]


def test_protects_a_folder_as_the_library_does(pets, capsys, tmp_path):
    main(protect(pets, "--by", "cuda", "--key", KEY, "--blur", "0.2"))
    shown = capsys.readouterr()
    protect_folder(CUDA(key=int(KEY), blur=0.2), pets, tmp_path / "again")
    assert np.array_equal(
        FolderPictures(tmp_path / "safe").pixels(range(6)), FolderPictures(tmp_path / "again").pixels(range(6))
    )
    assert "6 pictures of 3 classes, protected by cuda" in shown.out
    assert "no bound" in shown.out
    assert "Publish the pictures as PNG" in shown.out
    assert KEY not in shown.out + shown.err
    assert all(KEY.encode() not in content for content in contents(tmp_path / "safe").values())


def test_a_key_from_a_file_is_the_same_key_and_json_says_what_was_done(pets, capsys, tmp_path):
    (tmp_path / "key.txt").write_text(f"{KEY}\n")
    main(protect(pets, "--key-file", str(tmp_path / "key.txt"), "--json"))
    shown = json.loads(capsys.readouterr().out)
    assert (shown["by"], shown["budget"], shown["facts"]["pictures"], shown["notices"]) == ("cuda", None, 6, [])
    assert shown["change"] > 0
    first = contents(tmp_path / "safe")["blue/0.png"]
    main(protect(pets, "--key", KEY, "--overwrite"))
    assert contents(tmp_path / "safe")["blue/0.png"] == first


def test_what_was_learnt_is_saved_for_pictures_to_come(pets, tmp_path):
    main(protect(pets, "--key", KEY, "--save", str(tmp_path / "kept")))
    protection = Protection.load(tmp_path / "kept", int(KEY))
    rows = FolderPictures(pets)
    assert np.array_equal(
        protection.transform(rows.pixels(range(6)), rows.labels), FolderPictures(tmp_path / "safe").pixels(range(6))
    )


def test_the_noise_that_has_not_converged_is_told_once_with_its_flag(pets, capsys):
    more = (
        "--by",
        "em-noise",
        "--mode",
        "class",
        "--rounds",
        "1",
        "--surrogate",
        "small-cnn",
        "--stop",
        "0",
        "--key",
        KEY,
    )
    main(protect(pets, *more, "--train-steps", "1", "--lr", "1e-9"))
    shown = capsys.readouterr()
    assert shown.err.count("has not converged after 1 rounds") == 1
    assert "more --rounds may help" in shown.err
    assert "at most 8" in shown.out


def test_noise_of_clusters_takes_a_folder_of_a_trained_network(pets, capsys, tmp_path):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], num_labels=3)
    model = transformers.ResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "net")
    normal = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"shortest_edge": 16}}
    (tmp_path / "net" / "preprocessor_config.json").write_text(json.dumps(normal))
    more = ["--n-clusters", "3", "--width", "4", "--blocks", "1", "--steps", "2", "--save", str(tmp_path / "kept")]
    surrogate = str(tmp_path / "net")
    main(protect(pets, "--by", "unlearnable-clusters", "--surrogate", surrogate, "--key", KEY, *more))
    shown = capsys.readouterr()
    assert "6 pictures of 3 classes, protected by unlearnable-clusters" in shown.out
    assert "at most 16" in shown.out
    loaded = Protection.load(tmp_path / "kept", int(KEY))
    assert loaded.noise_.shape == (3, 3, 16, 16)
    assert np.array_equal(
        loaded.transform(FolderPictures(pets).pixels(range(6))), FolderPictures(tmp_path / "safe").pixels(range(6))
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "there is no key. Give one of --key and --key-file; to draw one: "),
        (("--key", "1", "--key-file", "x"), "--key and --key-file both give a key"),
        (("--key-file", "nowhere"), "there is no file nowhere"),
        (("--key", "s3cret"), "--key holds no key: a key is a whole number from 0, in digits"),
        (("--key", "-5"), "--key holds no key"),
        (("--key", "9" * 90), "--key has more than 256 bits"),
        (("--key", KEY, "--by", "cudda"), "unknown shield 'cudda'. Did you mean 'cuda'?"),
        (("--key", KEY, "--blurr", "1"), "unknown field of cuda '--blurr'. Did you mean '--blur'?"),
        (("--key", KEY, "--blur", "2"), "--blur is 2.0; it must be at least 0 and at most 1"),
        (("--key", KEY, "--by", "em-noise", "--eps", "8"), "--eps is 8, and pixels are in 0..1"),
        (("--key", KEY, "--by", "em-noise", "--eps", "0"), "--eps is 0, of which 8 bits leave nothing"),
        (("--key", KEY, "--by", "em-noise", "--mode", "both"), "--mode is 'both'; use one of"),
        (
            ("--key", KEY, "--by", "unlearnable-clusters", "--surrogate", "nowhere"),
            "--surrogate is 'nowhere', which is no",
        ),
        (
            ("--key", KEY, "--by", "unlearnable-clusters", "--surrogate", "a/b", "--n-clusters", "2"),
            "a/b is not in the Hub cache",
        ),
        (("--key", KEY, "--by", "unlearnable-clusters"), "has 6 pictures, of which 10 clusters can't be made"),
        (
            ("--key", KEY, "--by", "unlearnable-clusters", "--offset", "10"),
            "--offset is 10 and --n-clusters 10, so each",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(pets, capsys, more, message):
    line = refused(capsys, protect(pets, *more))
    assert message in line
    assert "s3cret" not in line
    assert not pets.with_name("safe").exists()


def test_existing_folders_are_replaced_only_when_asked(pets, capsys, tmp_path):
    main(protect(pets, "--key", KEY, "--save", str(tmp_path / "kept")))
    before = contents(tmp_path)
    line = refused(capsys, protect(pets, "--key", "1"))
    assert "holds protected pictures. Choose another --out, or pass --overwrite to replace them" in line
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    line = refused(capsys, protect(pets, "--key", "1", "--overwrite", "--save", str(tmp_path / "mine")))
    assert "holds other files than a saved protection. Choose another --save." in line
    (tmp_path / "mine" / "notes.txt").unlink()
    assert contents(tmp_path) == before
