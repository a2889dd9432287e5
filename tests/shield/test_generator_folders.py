"""Generators of noise in folders: saved, found damaged, and known again by a protection."""

import json

import pytest
from captioned import CAPTIONS, shield

from helpers.caption_encoders import HashedText, tiny_generator
from helpers.pictures import make_pictures
from unwrite.errors import ModelError, RunError
from unwrite.runs import hash_model
from unwrite.shield import Protection, load_generator, save_generator


def test_a_saved_generator_is_the_same_and_is_replaced_only_when_asked(tmp_path):
    generator = tiny_generator(mask=True, eps=0.05)
    folder = save_generator(generator, tmp_path / "g", training={"epochs": 3})
    again, training = load_generator(folder)
    assert hash_model(again) == hash_model(generator)
    assert (again.settings, training) == (generator.settings, {"epochs": 3})
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(RunError, match=r"holds a saved generator. Choose another folder, or pass overwrite=True"):
        save_generator(generator, folder)
    save_generator(generator, folder, overwrite=True)
    (folder / "mine.txt").touch()
    with pytest.raises(RunError, match="holds other files than a saved generator"):
        save_generator(generator, folder, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file is a file"):
        save_generator(generator, tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(form=2), "is of no text noise generator, or of one of another version"),
        (lambda c: c.update(training=3), "is of no text noise generator"),
        (lambda c: c["generator"].update(channels="8"), "doesn't say how the generator is built"),
        (lambda c: c["generator"].update(text_width=2**40), "doesn't say how the generator is built"),
        (lambda c: c["generator"].update(channels=[8] * 40), "doesn't say how the generator is built"),
        (lambda c: c["generator"].pop("mask"), "doesn't say how the generator is built"),
        (
            lambda c: c["generator"].update(text_width=7),
            "is not of the generator that config.json tells of: see 'blocks",
        ),
        (lambda c: c["generator"].update(channels=[8]), "is not of the generator that config.json tells of"),
        (lambda c: c.update(weights="0"), "is not what config.json was written for"),
    ],
)
def test_a_damaged_generator_is_refused(change, message, tmp_path):
    folder = save_generator(tiny_generator(), tmp_path / "g")
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        load_generator(folder)


def test_a_folder_without_a_generator_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds no generator of noise: it has no config.json. Train one first"):
        load_generator(tmp_path)
    assert shield(generator=str(tmp_path)).generator == str(tmp_path)
    with pytest.raises(ModelError, match="holds no generator of noise"):
        shield(generator=tmp_path).noise_of(CAPTIONS, 8)


def test_a_protection_knows_the_generator_it_was_fitted_with(tmp_path):
    pixels, _ = make_pictures(5)
    folder = shield().fit(pixels, CAPTIONS).save(tmp_path / "kept")
    assert (
        Protection.load(folder, 5, generator=tiny_generator(), text_encoder=HashedText())
        .transform(pixels, CAPTIONS)
        .any()
    )
    other = Protection.load(folder, 5, generator=tiny_generator(seed=1), text_encoder=HashedText())
    with pytest.raises(RunError, match=r"was fitted with another generator than the one at hand"):
        other.transform(pixels, CAPTIONS)
