"""A training on images that was stopped goes on to the weights of one that never was, for every method."""

import pytest
import torch
from transformers import TrainerCallback

from helpers.tiny import make_image_recipe, make_image_split
from unwrite import catalog
from unwrite.errors import MethodError, Notice
from unwrite.forget import SCRUB, FineTune
from unwrite.runs import hash_model

FOR_REGRESSORS = {"blindspot", "gaussian-amnesiac"}
SHORT = {
    "laf": {"vae_epochs": 1, "repair": True},
    "unsir": {"noise_rows": 4, "noise_steps": 2, "copies": 2},
    "dmm": {"retain_multiplier": 1.0},
    "oracle-matching": {"retain_multiplier": 1.0},
}
METHODS = {slug: one for slug, one in catalog.methods().items() if "images" in one.forgets and one.package == "unwrite"}


class Stop(TrainerCallback):
    """Stops training by force while an epoch runs."""

    def __init__(self, step):
        self.step, self.steps = step, 0

    def on_step_end(self, args, state, control, **_):
        self.steps = state.global_step
        if state.global_step == self.step:
            raise KeyboardInterrupt


class Count(TrainerCallback):
    """Counts the steps that are trained."""

    steps = 0

    def on_step_end(self, args, state, control, **_):
        self.steps += 1


def apply(slug, folder, *callbacks, resume=None, **args):
    regression = slug in FOR_REGRESSORS
    parts, recipe = make_image_split(regression=regression), make_image_recipe(regression=regression)
    method = METHODS[slug].load()(**SHORT.get(slug, {}))
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "seed": 3, **args}
    return method.apply(
        recipe.build(0).eval(),
        parts.forget,
        parts.retain,
        holdout=parts.holdout,
        recipe=recipe,
        callbacks=callbacks,
        args={**settings, "output_dir": None if folder is None else str(folder), "resume_from_checkpoint": resume},
    )


@pytest.mark.parametrize("slug", METHODS)
@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
def test_a_stopped_training_goes_on_to_the_same_weights(slug, tmp_path):
    count = Count()
    whole = hash_model(apply(slug, None, count))
    if count.steps < 2:
        assert hash_model(apply(slug, tmp_path, resume=True)) == whole
        return
    with pytest.raises(KeyboardInterrupt):
        apply(slug, tmp_path, Stop(count.steps))  # in the last epoch
    rest = Count()
    assert hash_model(apply(slug, tmp_path, rest, resume=True)) == whole
    assert rest.steps < count.steps or not list(tmp_path.glob("*/checkpoint-*"))
    over = Count()
    assert hash_model(apply(slug, tmp_path, over, resume=True)) == whole
    assert over.steps == 0  # it had ended


def test_only_the_newest_checkpoint_stays_and_a_damaged_one_is_not_gone_on_from(tmp_path):
    apply("fine-tune", tmp_path)
    [kept] = [path for path in (tmp_path / "phase-1").iterdir() if path.is_dir()]
    file = kept / "state.pt"
    file.write_bytes(file.read_bytes()[:-10])
    count = Count()
    with pytest.warns(Notice):
        again = apply("fine-tune", tmp_path, count, resume=True)
    assert count.steps > 0
    assert hash_model(again) == hash_model(apply("fine-tune", None))


def test_dropout_goes_on_where_it_stood(tmp_path):
    """The random state is part of a checkpoint: a net with dropout comes out the same, too."""
    from torch import nn

    parts = make_image_split()

    def run(*callbacks, **args):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, 3)).eval()
        settings = {"num_train_epochs": 4, "per_device_train_batch_size": 8, "seed": 1, **args}
        return hash_model(FineTune().apply(model, parts.forget, parts.retain, callbacks=callbacks, args=settings))

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(Stop(5), output_dir=str(tmp_path))
    assert run(output_dir=str(tmp_path), resume_from_checkpoint=True) == whole


def test_a_training_that_a_callback_ended_stays_ended(tmp_path):
    class Enough(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = True

    ended = hash_model(apply("fine-tune", tmp_path, Enough(), num_train_epochs=3))
    over = Count()
    assert hash_model(apply("fine-tune", tmp_path, over, resume=True, num_train_epochs=3)) == ended
    assert over.steps == 0


def test_resuming_without_a_folder_is_refused():
    with pytest.raises(MethodError, match="resume_from_checkpoint needs output_dir"):
        apply("scrub", None, resume=True)


def test_a_training_without_checkpoints_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = make_image_split()
    SCRUB().apply(make_image_recipe().build(0), parts.forget, parts.retain, args={"max_steps": 1})
    assert not list(tmp_path.iterdir())
