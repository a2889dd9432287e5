"""A training that was killed goes on to the same bits, whatever it was and whenever it was killed."""

import json
import os
import shutil
from functools import partial

import pytest
import torch
from forgetting import KillAt, train, weights
from peft import LoraConfig
from transformers import TrainerCallback

from conftest import make_examples, make_llama, make_tokenizer
from unwrite.errors import Notice, RunError, noticing
from unwrite.forget import DPO, NPO, RMU, ULD, SimNPO, StopWhenForgotten, TaskVector
from unwrite.forget.base import Phase
from unwrite.forget.engine import checkpoints
from unwrite.forget.engine.checkpoints import newest

LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.2, target_modules="all-linear", task_type="CAUSAL_LM")
OPTIONS = {
    "optim": "adamw_torch", "learning_rate": 1e-2, "num_train_epochs": 2, "per_device_train_batch_size": 8,
    "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1,
}  # fmt: skip
CASES = {
    "npo": (NPO(), {}),
    "npo with kl": (NPO(retain_loss="kl"), {}),
    "dpo": (DPO(), {}),
    "rmu": (RMU(layer=1), {}),
    "accumulated": (SimNPO(), {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}),
    "lora": (NPO(), {"peft_config": LORA}),
    "uld": (ULD(layers=1), {}),
    "task vector": (TaskVector(), {}),
}


def with_dropout():
    model = make_llama()
    model.config.attention_dropout = 0.1  # the random state has to be restored, too
    for block in model.model.layers:
        block.self_attn.attention_dropout = 0.1
    return model


def same(ours, theirs):
    return all(torch.equal(tensor, weights(theirs)[name]) for name, tensor in weights(ours).items())


def given():
    return make_examples("forget", 16), make_examples("retain", 20), make_tokenizer()


@pytest.fixture
def rows():
    return given()


@pytest.fixture(scope="module")
def whole(shared_cache, tmp_path_factory):
    """The model of NPO's training that nothing stops."""
    return train(NPO(), with_dropout(), *given(), **OPTIONS, output_dir=str(tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("case", CASES)
def test_a_killed_training_goes_on_to_the_same_bits(case, rows, tmp_path):
    method, options = CASES[case]
    options = {**OPTIONS, **options, "output_dir": str(tmp_path / "cut")}
    whole = train(method, with_dropout(), *rows, **{**options, "output_dir": str(tmp_path / "whole")})
    with pytest.raises(KeyboardInterrupt):
        train(method, with_dropout(), *rows, callbacks=[KillAt(2)], **options)
    torch.manual_seed(99)
    assert same(whole, train(method, with_dropout(), *rows, resume_from_checkpoint=True, **options))


@pytest.mark.parametrize("broken", ["os.replace", "sync", "seal", "optimizer.pt", "trainer_state.json"])
@pytest.mark.parametrize("step", [1, 3])
def test_a_kill_while_a_checkpoint_is_written_costs_that_one_alone(broken, step, whole, rows, tmp_path, monkeypatch):
    """With only one checkpoint kept: the one before stays until the next one is whole."""
    folder = tmp_path / "cut"

    class Killed(BaseException):
        pass

    def kills(real, when):
        def call(*arguments, **options):
            if when(*arguments):
                raise Killed
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        if broken == "os.replace":
            patch.setattr(os, "replace", kills(os.replace, lambda a, b: str(b).endswith(f"checkpoint-{step}")))
        elif broken in ("sync", "seal"):
            done = []
            patch.setattr(
                checkpoints, broken, kills(getattr(checkpoints, broken), lambda p: done.append(p) or len(done) == step)
            )
        elif broken == "optimizer.pt":
            patch.setattr(torch, "save", kills(torch.save, lambda _, p: f"checkpoint-{step}/optimizer.pt" in str(p)))
        else:
            from transformers import TrainerState

            patch.setattr(
                TrainerState, "save_to_json", kills(TrainerState.save_to_json, lambda s, p: s.global_step == step)
            )
        with pytest.raises(Killed):
            train(NPO(), with_dropout(), *rows, **OPTIONS, output_dir=str(folder))
    expected = step if broken == "seal" else step - 1  # the sums come after the name
    last = newest(folder)
    assert (0 if last is None else int(last.name[-1])) == expected
    if expected:
        again = train(NPO(), with_dropout(), *rows, **OPTIONS, output_dir=str(folder), resume_from_checkpoint=True)
    else:
        with pytest.warns(Notice, match="begins from the start"):
            again = train(NPO(), with_dropout(), *rows, **OPTIONS, output_dir=str(folder), resume_from_checkpoint=True)
    assert same(whole, again)
    assert not (folder / checkpoints.ASIDE).exists()


def test_a_damaged_checkpoint_is_dropped_and_the_one_before_is_taken(rows, tmp_path):
    options = {**OPTIONS, "save_total_limit": 2, "output_dir": str(tmp_path)}
    whole = train(NPO(), with_dropout(), *rows, **options)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-?")) == ["checkpoint-3", "checkpoint-4"]
    file = tmp_path / "checkpoint-4" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8] + bytes(8))
    with pytest.warns(Notice, match=r"model\.safetensors is not as it was written"):
        assert same(whole, train(NPO(), with_dropout(), *rows, resume_from_checkpoint=True, **options))


def test_a_training_that_had_ended_is_not_trained_on(rows, tmp_path):
    """Stopped early, and killed before its model was saved."""
    forget, _, tokenizer = rows
    options = {**OPTIONS, "num_train_epochs": 10, "learning_rate": 0.1, "output_dir": str(tmp_path)}

    def stop():
        return StopWhenForgotten(tokenizer, {"forget": forget}, target=0.5, every=1)

    first, second, third = stop(), stop(), stop()
    whole = train(NPO(), with_dropout(), *rows, callbacks=[first], **options)
    assert first.reason.startswith("forgotten at step")
    again = train(NPO(), with_dropout(), *rows, callbacks=[second], resume_from_checkpoint=True, **options)
    assert same(whole, again)
    assert (second.reason, second.history) == (first.reason, first.history)
    shutil.rmtree(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(NPO(), with_dropout(), *rows, callbacks=[stop(), KillAt(1)], **options)
    train(NPO(), with_dropout(), *rows, callbacks=[third], resume_from_checkpoint=True, **options)
    assert (third.reason, third.history) == (first.reason, first.history)


def test_a_checkpoint_says_whether_training_ended_there(rows, tmp_path):
    train(NPO(), make_llama(), *rows, **{**OPTIONS, "save_total_limit": None}, output_dir=str(tmp_path))
    ended = [
        json.loads((tmp_path / f"checkpoint-{n}" / "unwrite-training.json").read_text())["ended"] for n in (1, 2, 3, 4)
    ]
    assert ended == [False, False, False, True]


def test_steps_are_counted_and_not_read_as_text(tmp_path):
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-11").write_text("no folder")
    (tmp_path / "checkpoint-x").mkdir()
    assert newest(tmp_path).name == "checkpoint-10"


@pytest.mark.parametrize("damage", [shutil.rmtree, lambda path: (path / "trainer_state.json").unlink()])
def test_refuses_a_checkpoint_that_is_gone_or_damaged(damage, rows, tmp_path):
    train(NPO(), make_llama(), *rows, **OPTIONS, output_dir=str(tmp_path))
    named = tmp_path / "checkpoint-4"
    damage(named)
    with pytest.raises(RunError, match=r"checkpoint-4.*resume_from_checkpoint=True"):
        train(NPO(), make_llama(), *rows, **OPTIONS, output_dir=str(tmp_path), resume_from_checkpoint=str(named))


def test_going_on_from_an_earlier_checkpoint_replaces_the_later_ones(rows, tmp_path):
    options = {**OPTIONS, "save_total_limit": None, "output_dir": str(tmp_path)}
    whole = train(NPO(), with_dropout(), *rows, **options)
    named = str(tmp_path / "checkpoint-2")
    assert same(whole, train(NPO(), with_dropout(), *rows, resume_from_checkpoint=named, **options))
    assert newest(tmp_path).name == "checkpoint-4"
    assert not list(tmp_path.glob(".*"))


class TwoPhases(NPO):
    """Forgets, then repairs: 2 steps each with the options here."""

    def phases(self, work):
        return [Phase("forget", self.loss, epochs=1), Phase("paired", self.total_loss, epochs=1)]


def in_phases(folder, **more):
    options = {**OPTIONS, "save_total_limit": None, "output_dir": str(folder), **more}
    return train(TwoPhases(), with_dropout(), *given(), **options)


@pytest.fixture(scope="module")
def whole_in_phases(shared_cache, tmp_path_factory):
    return in_phases(tmp_path_factory.mktemp("phases"))


@pytest.fixture
def phases(whole_in_phases, tmp_path):
    """The whole training of two phases, the folder of another, and how it is run."""
    return whole_in_phases, tmp_path / "cut", partial(in_phases, tmp_path / "cut")


@pytest.mark.parametrize(("phase", "step"), [(1, 1), (2, 0), (2, 1)])
def test_phases_go_on_in_the_one_that_was_killed_and_say_nothing_of_the_others(phases, phase, step):
    whole, folder, run = phases
    begun = []

    class Kill(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            begun.append(args.output_dir)

        def on_step_begin(self, args, state, control, **_):
            if (len(begun), state.global_step) == (phase, step):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[Kill()])
    assert (newest(folder / "phase-2") is None) == ((phase, step) != (2, 1))
    with noticing() as notices:
        assert same(whole, run(resume_from_checkpoint=True))
    assert not [message for message in notices if "checkpoint" in message]


def test_phases_without_a_checkpoint_begin_from_the_start_and_say_so_once(phases):
    whole, folder, run = phases
    with noticing() as notices, pytest.warns(Notice):
        assert same(whole, run(resume_from_checkpoint=True))
    assert [message for message in notices if "checkpoint" in message] == [
        f"there is no whole checkpoint in {folder / 'phase-1'}, so training begins from the start."
    ]


@pytest.mark.parametrize("named", ["phase-1/checkpoint-1", "phase-1/checkpoint-2", "phase-2/checkpoint-1"])
def test_a_named_checkpoint_is_that_of_its_phase_alone(phases, named):
    whole, folder, run = phases
    run()
    assert same(whole, run(resume_from_checkpoint=str(folder / named)))


def test_phases_before_the_named_one_end_as_they_did_and_those_after_begin(tmp_path):
    named = str(tmp_path / "phase-2" / "checkpoint-1")
    asked = [checkpoints.of_phase(named, number, tmp_path) for number in (1, 2, 3)]
    assert asked == [True, named, None]


@pytest.mark.parametrize("named", ["checkpoint-1", "phase-1", "elsewhere/phase-1/checkpoint-1"])
def test_a_checkpoint_of_no_phase_is_refused(phases, named):
    _, folder, run = phases
    with pytest.raises(RunError, match=r"is of no phase of the training in .*resume_from_checkpoint=True"):
        run(resume_from_checkpoint=str(folder / named))
