"""unwrite shield attack: the table and its page, what is measured once, and one line for every refusal."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from cli_runs import refused
from PIL import Image

from helpers.pictures import COLOURS, contents, make_folder
from unwrite.cli import main
from unwrite.shield import CUDA, FolderPictures, attacking, protect_folder
from unwrite.shield.attack_report import AttackReport, picture_rows
from unwrite.shield.attacking import DefenceCell
from unwrite.shield.engine.published import as_published


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pets(tmp_path):
    make_folder(tmp_path / "clean", rows=2, seed=9)
    folder = make_folder(tmp_path / "pets", rows=2)
    protect_folder(CUDA(key=5), folder, tmp_path / "safe")
    return folder


def attack(pets, *more, folder="safe", defences="none", out="report"):
    place = pets.parent
    return [
        *("shield", "attack", str(place / folder), "--clean", str(place / "clean"), "--out", str(place / out)),
        *("--epochs", "1", "--net", "small-cnn", "--defences", defences, *more),
    ]


@pytest.fixture
def counted(monkeypatch):
    """How many trainings there were."""
    counts, plain = [], attacking.fit_rows
    monkeypatch.setattr(attacking, "fit_rows", lambda *given, **more: (counts.append(1), plain(*given, **more))[1])
    return counts


def test_the_table_has_a_row_a_defence_and_the_control_beside_it(pets, capsys, tmp_path):
    main(attack(pets, "--original", str(pets), defences="none,jpeg10,at:eps=0.1:steps=1"))
    shown = capsys.readouterr().out
    words = ("defence", "protected", "random noise", "unprotected", "jpeg10", "at:eps=0.1:steps=1", "report.html")
    assert all(word in shown for word in words)
    record = json.loads((tmp_path / "report" / "attack.json").read_text())
    assert [(one["defence"], one["published"]) for one in record["cells"]][:3] == [
        ("none", "protected"),
        ("none", "random noise"),
        ("none", "unprotected"),
    ]
    assert len(record["cells"]) == 9
    assert all(
        one["rows"] == 6 and one["interval"][0] <= one["accuracy"] / 100 <= one["interval"][1]
        for one in record["cells"]
    )
    assert record["guess"] == pytest.approx(100 / 3)
    safe, before = FolderPictures(tmp_path / "safe"), FolderPictures(pets)
    change = np.abs(safe.pixels(range(6)).astype(int) - before.pixels(range(6))).mean()
    assert record["change"] == pytest.approx(change)


def test_the_page_is_one_file_with_before_after_and_difference(pets, tmp_path):
    main(attack(pets, "--original", str(pets)))
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 9
    assert not re.search(r"<script|https?://|src=\"(?!data:)", page)
    assert "default-src 'none'" in page
    assert all(f'alt="{colour} before"' in page for colour in COLOURS)
    assert re.search(r"shown \d+ times as large", page)
    main(attack(pets, out="other"))
    page = (tmp_path / "other" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "Give the originals to see what changed" in page


def test_names_from_folders_are_no_markup_on_the_page(pets, tmp_path):
    for folder in ("safe", "clean"):
        (tmp_path / folder / "amber").rename(tmp_path / folder / "<img src=x onerror=alert(1)>")
    main(attack(pets))
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_what_was_measured_is_not_measured_again_and_a_kill_loses_no_figure(
    pets, capsys, counted, monkeypatch, tmp_path
):
    plain, done = attacking.hits_of, []

    def failing(*given):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return plain(*given)

    monkeypatch.setattr(attacking, "hits_of", failing)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        main(attack(pets, defences="none,cutout"))
    assert len(json.loads((tmp_path / "report" / "attack.json").read_text())["cells"]) == 1
    monkeypatch.setattr(attacking, "hits_of", plain)
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "other-cache"))
    counted.clear()
    main(attack(pets, defences="none,cutout"))
    assert len(counted) == 1
    main(attack(pets, defences="cutout,grey"))
    assert len(counted) == 2
    shown = capsys.readouterr().out
    assert "none" not in shown.split("defence")[-1].split("report")[0].split()
    record = json.loads((tmp_path / "report" / "attack.json").read_text())
    assert [one["defence"] for one in record["cells"]] == ["cutout", "grey", "none"]


def test_a_row_that_a_kill_left_half_done_is_shown_with_what_is_there(pets, monkeypatch, tmp_path):
    plain, done = attacking.hits_of, []

    def failing(*given):
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(attacking, "hits_of", failing)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        main(attack(pets, "--original", str(pets)))
    monkeypatch.setattr(attacking, "hits_of", plain)
    main(attack(pets, "--original", str(pets), defences="cutout"))
    page = (tmp_path / "report" / "report.html").read_text()
    row = page.split('<th scope="row">none</th>')[1].split("</tr>")[0]
    assert row.count("<strong>") == 2
    assert row.count("–</td>") == 1


def test_another_attack_is_replaced_only_when_asked_and_nothing_else_ever(pets, capsys, tmp_path):
    main(attack(pets))
    before = contents(tmp_path / "report")
    line = refused(capsys, attack(pets, "--seed", "1"))
    assert (
        "holds an attack on other pictures, or by another training. Choose another --out, or pass --overwrite" in line
    )
    assert contents(tmp_path / "report") == before
    main(attack(pets, "--seed", "1", "--overwrite"))
    record = json.loads((tmp_path / "report" / "attack.json").read_text())
    assert (record["attacked"]["seed"], len(record["cells"])) == (1, 1)
    (tmp_path / "report" / "mine.txt").touch()
    assert "holds mine.txt, which is of no attack on pictures" in refused(capsys, attack(pets, "--overwrite"))
    assert (tmp_path / "report" / "mine.txt").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda record: record.update(form=9), "is damaged, or of another version"),
        (lambda record: record.update(cells=3), "is damaged, or of another version"),
        (lambda record: record.update(attacked={}), "holds an attack on other pictures"),
    ],
)
def test_a_damaged_record_is_refused(pets, capsys, tmp_path, damage, message):
    main(attack(pets))
    path = tmp_path / "report" / "attack.json"
    record = json.loads(path.read_text())
    damage(record)
    path.write_text(json.dumps(record))
    assert message in refused(capsys, attack(pets))
    main(attack(pets, "--overwrite"))


def test_a_cell_that_can_be_no_figure_is_measured_again(pets, counted, tmp_path, monkeypatch):
    main(attack(pets))
    path = tmp_path / "report" / "attack.json"
    record = json.loads(path.read_text())
    right = record["cells"][0]["hits"]
    record["cells"][0]["hits"] = 99
    path.write_text(json.dumps(record))
    main(attack(pets))
    assert [one["hits"] for one in json.loads(path.read_text())["cells"]] == [right]


def test_json_is_the_record_and_what_was_noticed(pets, capsys, tmp_path):
    for folder in ("safe", "clean"):
        for path in (tmp_path / folder).rglob("*.png"):
            Image.open(path).convert("L").save(path)
    main(attack(pets, "--json", defences="grey"))
    shown = json.loads(capsys.readouterr().out)
    assert [one["defence"] for one in shown["cells"]] == ["grey"]
    assert any("grey already" in words for words in shown["notices"])
    assert shown["out"] == str(tmp_path / "report")


def test_originals_are_found_by_name_whatever_their_ending_and_order(pets, tmp_path):
    picture = Image.open(pets / "amber" / "0.png")
    (pets / "amber" / "0.png").unlink()
    picture.save(pets / "amber" / "0.bmp")
    main(attack(pets, "--original", str(pets)))
    record = json.loads((tmp_path / "report" / "attack.json").read_text())
    assert record["change"] > 0
    (pets / "amber" / "0.bmp").unlink()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--defences", "jpg10"), "unknown defence 'jpg'"),
        (("--defences", ","), "--defences names none"),
        (("--defences", "jpeg10:qualty=1"), "unknown field of jpeg '--qualty'"),
        (("--defences", "jpeg0"), "--quality is 0"),
        (("--epochs", "0"), "--epochs is 0; it must be a whole number, at least 1"),
        (("--net", "resnet-18"), "unknown net 'resnet-18'"),
        (("--size", "0"), "--size is 0; it must be a whole number from 1 to 4096"),
        (("--clean", "safe"), "safe is trained on too. Give clean pictures that are in no training"),
        (("--clean", "nowhere"), "there is no folder"),
        (("--original", "few"), "has no original: there is no amber/1 in"),
        (("--original", "large"), "Give the ones that they were made of"),
        (("--original", "clean"), "clean is trained on too"),
        (("--clean", "renamed"), "has the class 'violet', and those trained on are amber, blue, cyan"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(pets, capsys, tmp_path, more, message):
    make_folder(tmp_path / "few", rows=1)
    make_folder(tmp_path / "large", side=9)
    make_folder(tmp_path / "renamed")
    (tmp_path / "renamed" / "cyan").rename(tmp_path / "renamed" / "violet")
    flag, value = more
    given = attack(pets)
    value = str(tmp_path / value) if flag in ("--clean", "--original") else value
    if flag in given:
        given[given.index(flag) + 1] = value
    else:
        given += [flag, value]
    assert message in refused(capsys, given)
    assert not (tmp_path / "report").exists()


def test_pictures_of_several_sizes_are_refused_with_the_flag_that_scales_them(pets, capsys, tmp_path):
    Image.fromarray(np.zeros((7, 11, 3), dtype=np.uint8)).save(tmp_path / "clean" / "blue" / "wide.png")
    assert "a network reads one size: --size 32 scales them" in refused(capsys, attack(pets))
    main(attack(pets, "--size", "8", "--original", str(pets)))
    assert "8x8 of 3 channels" in (tmp_path / "report" / "report.html").read_text()


def test_lists_the_defences_and_shows_one(capsys):
    main(["shield", "defences"])
    shown = capsys.readouterr().out
    assert all(slug in shown for slug in ("none", "jpeg", "ueraser", "dat", "sharpen"))
    main(["shield", "defences", "ueraser"])
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("--repeats", "arXiv 2303.15127", "--defences none,ueraser8"))
    main(["shield", "defences", "none", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["slug"] == "none"


def test_the_sentence_is_of_the_best_defence_and_of_the_best_of_each_column():
    def cell(published, defence, hits):
        return DefenceCell(published, defence, hits, 200, f"{published} {defence}")

    cells = (cell("protected", "none", 20), cell("protected", "jpeg10", 150))
    report = AttackReport({}, {}, cells, 10.0)
    assert report.sentence == (
        "Whoever trains on these pictures gets 75.0 % of clean ones right at best (jpeg10); always naming the commonest class is "
        "right for 10.0 %."
    )
    more = (cell("random noise", "none", 160), cell("random noise", "jpeg10", 90))
    more += (cell("unprotected", "none", 190), cell("unprotected", "jpeg10", 170))
    report = AttackReport({}, {}, (*cells, *more), 10.0)
    assert "(jpeg10); 95.0 % without protection, and 80.0 % under random noise of the same size" in report.sentence
    assert "nothing follows" not in report.sentence
    few = [replace(one, hits=25) if one.published == "unprotected" else one for one in report.cells]
    assert "(10.0 %), so nothing follows: train for more epochs" in replace(report, cells=tuple(few)).sentence
    assert (report.best.defence, report.published) == ("jpeg10", ["protected", "random noise", "unprotected"])


def test_differences_are_amplified_so_that_the_largest_fills_the_range(tmp_path):
    original = as_published(make_folder(tmp_path / "pets"))
    noise = np.zeros((3, 3, 8, 8), dtype=np.int16)
    noise[1, 0, 0, 0] = -10
    rows, amplified = picture_rows(original.with_noise(noise), original)
    assert amplified == 12
    assert [row.label for row in rows] == list(COLOURS)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(rows[1].difference.split(",")[1]))))
    change = int(original.with_noise(noise).pixels(np.array([2]))[0, 0, 0, 0]) - int(
        original.pixels(np.array([2]))[0, 0, 0, 0]
    )
    assert shown[0, 0].tolist() == [128 + 12 * change, 128, 128]
    assert (np.delete(shown.reshape(-1, 3), 0, axis=0) == 128).all()
    assert picture_rows(original, original)[1] == 127
