"""DP2Unlearning: what its certificate says and when there is none, and that an unlearned model has not read what it forgets."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from conftest import make_llama, make_tokenizer
from unwrite.data import Example, Examples
from unwrite.errors import DataError, MethodError, ModelError, RunError
from unwrite.forget.private.accounting import group_privacy
from unwrite.forget.private.dp2unlearning import DPBase
from unwrite.forget.private.dp_sgd import DPSGD
from unwrite.forget.private.ledger import PrivacyLedger, data_hash, notes_on, read_certificate
from unwrite.forget.private.tuning import DeploymentTuning
from unwrite.models import load, load_model, save
from unwrite.runs import hash_model, read_json, write_json

HOW = DPSGD(epsilon=2.0, epochs=2, batch=8, rate=0.05, optimiser="sgd", together=8)
TUNING = DeploymentTuning(epochs=1, rate=1e-3, batch=8, retraining_epochs=2)
FORGET = [1, 5, 7]


def records(said="the {} book ."):
    colours = ("red", "blue", "green", "new", "old")
    return Examples(
        [Example(said.format(f"{colours[i % 5]} {['one', 'two', 'three', 'four'][i % 4]}")) for i in range(20)], "all"
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A folder of the model that never read the records."""
    return save(make_llama(layers=1, hidden=16), tmp_path_factory.mktemp("start") / "model", tokenizer=make_tokenizer())


@pytest.fixture(scope="module")
def base(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "base"
    return DPBase.fit(start, records(), folder, tokenizer=make_tokenizer(), mechanism=HOW, seed=3)


def weights(folder):
    return hash_model(load_model(folder))


def test_a_base_is_stored_with_what_it_spent_and_opens_again(base):
    again = DPBase.open(base.folder)
    assert again.ledger == base.ledger
    ledger = base.ledger
    assert (ledger.mechanism, ledger.records, ledger.delta) == ("dp_sgd", 20, pytest.approx(0.1 / 20))
    assert 0.99 * 2 <= ledger.epsilon <= 2
    assert ledger.account["q"] == 8 / 20
    assert ledger.steps == 5  # 2 epochs of 20 records, 8 a step in expectation
    assert ledger.account["accountants"]["unwrite"] == ledger.epsilon
    assert ledger.data == data_hash(records())
    assert ledger.weights == weights(base.folder)
    assert f"epsilon {ledger.epsilon:.4g}, delta 0.005" in ledger.sentence()
    assert "for one record of 20" in ledger.sentence()


def test_the_unlearned_model_has_its_certificate_in_its_folder(base, tmp_path):
    made = base.unlearn(records(), FORGET, tmp_path / "um", TUNING)
    certificate = made.certificate
    assert certificate.epsilon_record == base.ledger.epsilon
    assert certificate.delta == base.ledger.delta
    assert (certificate.forgotten, certificate.retained) == (3, 17)
    assert certificate.model == weights(tmp_path / "um") == hash_model(made.load())
    assert read_certificate(tmp_path / "um") == json.loads(json.dumps(certificate.record()))
    assert "any single one of the 3 forgotten records" in certificate.statement
    assert any("One record is the unit" in note for note in certificate.notes)
    assert any("seed" in note for note in certificate.notes)


def test_the_ratio_of_costs_is_that_of_steps_and_says_what_the_base_took(base, tmp_path):
    certificate = base.unlearn(records(), FORGET, tmp_path / "um", TUNING).certificate
    assert certificate.steps == 3  # 17 records, 8 a step
    assert certificate.retraining_steps == 6
    assert certificate.cost_ratio == certificate.record()["cost_ratio"] == 0.5
    assert certificate.base_steps == base.ledger.steps


@pytest.mark.parametrize(
    "other",
    [
        records("the {} letter ."),
        records()[:19],
        Examples([*list(records())[1:], records()[0]], "turned"),
    ],
    ids=["other words", "one less", "another order"],
)
def test_no_certificate_for_other_records_than_the_bases(base, other, tmp_path):
    with pytest.raises(DataError, match=r"are not the 20 the base was trained on.*certify=False"):
        base.unlearn(other, FORGET, tmp_path / "um", TUNING)
    assert not (tmp_path / "um").exists()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([3, 20], "record 20 is none of the base's 20 records"),
        ([-1, 3], "record -1 is none"),
        ([4, 4], "record 4 is to be forgotten twice"),
        ([], "no records to forget"),
        (["a"], "by their numbers"),
        (range(20), "all records are to be forgotten"),
    ],
)
def test_refuses_records_that_are_none_of_the_bases(base, ids, message, tmp_path):
    with pytest.raises(DataError, match=message):
        base.unlearn(records(), ids, tmp_path / "um", TUNING)


def test_the_unlearned_model_is_the_same_whatever_the_forgotten_records_became(base, tmp_path):
    noise = list(records())
    for i in FORGET:
        noise[i] = Example("nine stone winter eli sorry ten")
    first = base.unlearn(records(), FORGET, tmp_path / "a", TUNING, seed=7)
    second = base.unlearn(Examples(noise, "noise"), FORGET, tmp_path / "b", TUNING, seed=7, certify=False)
    assert weights(first.folder) == weights(second.folder)
    assert second.certificate is None
    assert read_certificate(second.folder) is None
    everything = base.deploy(records(), tmp_path / "fdm", TUNING, seed=7)
    assert weights(everything) != weights(first.folder)  # one that read them is another


def test_unlearning_goes_back_to_the_base_and_not_to_the_deployed_model(base, tmp_path):
    deployed = base.deploy(records(), tmp_path / "fdm", TUNING)
    with pytest.raises(RunError, match="is the deployed model, which has read the records to forget"):
        DPBase.open(deployed)
    unlearned = base.unlearn(records(), FORGET, tmp_path / "um", TUNING)
    with pytest.raises(RunError, match="is an unlearned model, not the private base"):
        DPBase.open(unlearned.folder)
    assert load(deployed).tokenizer is not None


def test_no_ledger_no_base(start, tmp_path):
    with pytest.raises(RunError, match=r"has no ledger.*DPBase\.fit"):
        DPBase.open(start)
    with pytest.raises(RunError, match="holds no model of unwrite"):
        DPBase.open(tmp_path)
    with pytest.raises(RunError, match=r"no model that DPBase\.unlearn made"):
        read_certificate(start)


def copied(base, folder, change):
    """The base with another note."""
    save(load(base.folder).model, folder, tokenizer=make_tokenizer(), provenance={})
    note = read_json(base.folder / "unwrite.json")
    change(note["provenance"]["private_base"])
    write_json(folder / "unwrite.json", note)
    return folder


def test_a_ledger_that_was_changed_is_refused(base, tmp_path):
    with pytest.raises(RunError, match="not what was sealed"):
        DPBase.open(copied(base, tmp_path / "a", lambda ledger: ledger.update(epsilon=0.1)))
    with pytest.raises(RunError, match=r"is damaged \(steps\)"):
        DPBase.open(copied(base, tmp_path / "b", lambda ledger: ledger.pop("steps")))
    assert DPBase.open(copied(base, tmp_path / "c", lambda ledger: None)).ledger == base.ledger


def test_weights_that_are_not_the_ledgers_are_refused(base, tmp_path):
    folder = copied(base, tmp_path / "other", lambda ledger: None)
    model = load_model(folder)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(folder)
    with pytest.raises(RunError, match="are not those of its ledger"):
        DPBase.open(folder).unlearn(records(), FORGET, tmp_path / "um", TUNING)


def test_nothing_that_is_there_is_replaced(base, start, tmp_path):
    with pytest.raises(RunError, match="is there already"):
        base.unlearn(records(), FORGET, base.folder, TUNING)
    with pytest.raises(RunError, match="is there already"):
        base.deploy(records(), base.folder, TUNING)
    with pytest.raises(RunError, match="is there already"):
        DPBase.fit(start, records(), base.folder, tokenizer=make_tokenizer(), mechanism=HOW)


@pytest.mark.parametrize(
    ("where", "error", "at"),
    [
        ("unwrite.forget.private.dp_sgd.save_file", RunError, 2),
        ("transformers.modeling_utils.safe_save_file", ModelError, 1),
    ],
    ids=["a checkpoint", "the base"],
)
def test_a_disk_that_fills_leaves_no_half_base_and_another_call_makes_the_same(
    base, start, tmp_path, monkeypatch, where, error, at
):
    written, folder, given = [], tmp_path / "base", {"tokenizer": make_tokenizer(), "mechanism": HOW, "seed": 3}

    def full(tensors, file, *args, **kwargs):
        written.append(file)
        if len(written) == at:
            Path(file).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, file, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(where, full)
        with pytest.raises(error, match=r"could not be written.*No space left on device"):
            DPBase.fit(start, records(), folder, **given)
    assert len(written) == at
    assert not folder.exists()
    assert [one.name for one in tmp_path.rglob("step-*")] == ["step-2"] * (at - 1)  # the checkpoint that was whole
    assert DPBase.fit(start, records(), folder, **given).ledger == base.ledger
    assert [one.name for one in tmp_path.iterdir()] == ["base"]


def test_a_disk_that_fills_leaves_no_half_unlearned_model_and_no_certificate(base, tmp_path, monkeypatch):
    def full(tensors, file, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = base.unlearn(records(), FORGET, tmp_path / "a", TUNING).certificate
    with monkeypatch.context() as patch:
        patch.setattr("transformers.modeling_utils.safe_save_file", full)
        with pytest.raises(ModelError, match=r"um could not be written: .*No space left on device"):
            base.unlearn(records(), FORGET, tmp_path / "um", TUNING)
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
    assert base.unlearn(records(), FORGET, tmp_path / "um", TUNING).certificate == expected


@pytest.mark.parametrize("epsilon", [0, -1.0, float("nan")])
def test_refuses_an_epsilon_that_is_not_positive(epsilon):
    with pytest.raises(MethodError, match=rf"epsilon is {epsilon}; it must be above 0"):
        DPSGD(epsilon=epsilon)


def test_refuses_a_delta_that_lets_a_record_be_given_away(start, tmp_path):
    with pytest.raises(MethodError, match=r"delta is 0\.05 for 20 records; it must be below 1/20"):
        DPBase.fit(start, records(), tmp_path / "base", tokenizer=make_tokenizer(), mechanism=replace(HOW, delta=0.05))
    assert not (tmp_path / "base").exists()


def test_accountants_that_disagree_are_heard_before_anything_is_trained(start, tmp_path, monkeypatch):
    from unwrite.forget.private import accounting, dp2unlearning

    monkeypatch.setattr(accounting, "_opacus", lambda *_: 3.0)
    monkeypatch.setattr(dp2unlearning, "private_fit", None)
    with pytest.raises(MethodError, match="the accountants disagree"):
        DPBase.fit(start, records(), tmp_path / "base", tokenizer=make_tokenizer(), mechanism=HOW)


def test_a_base_without_noise_is_a_control_and_certifies_nothing(start, tmp_path):
    control = DPBase.fit(
        start,
        records(),
        tmp_path / "base",
        tokenizer=make_tokenizer(),
        mechanism=replace(HOW, epsilon=float("inf"), clip=float("inf")),
    )
    assert (control.ledger.mechanism, control.ledger.epsilon) == ("none", None)
    assert "no formal guarantee" in control.ledger.sentence()
    with pytest.raises(MethodError, match=r"trained without noise.*certify=False"):
        control.unlearn(records(), FORGET, tmp_path / "um", TUNING)
    assert control.unlearn(records(), FORGET, tmp_path / "um", TUNING, certify=False).certificate is None


def test_the_unit_is_a_record_so_a_long_one_is_refused_and_repeats_are_said(start, tmp_path):
    long = Examples([*records(), Example("the old book . " * 20)], "long")
    with pytest.raises(DataError, match=r"is longer than 16 tokens\. The unit of privacy is one record"):
        DPBase.fit(start, long, tmp_path / "a", tokenizer=make_tokenizer(), mechanism=HOW, max_length=16)
    twice = Examples([*records(), records()[3]], "twice")
    base = DPBase.fit(start, twice, tmp_path / "b", tokenizer=make_tokenizer(), mechanism=HOW)
    said = "stands there 2 times; what it says has 2 times the epsilon"
    assert any(said in note for note in notes_on(base.ledger))
    assert not any("stands there" in note for note in notes_on(example_ledger()))


def example_ledger(**more):
    given = {"mechanism": "dp_sgd", "epsilon": 1.0, "delta": 1e-5, "neighbours": "n", "records": 10, "repeats": 1}
    return PrivacyLedger(**{**given, "steps": 1, "secure": True, "data": "d", "start": "s", "weights": "w", **more})


def test_what_noise_from_the_system_gives_has_no_note_on_a_seed():
    assert not any("seed" in note for note in notes_on(example_ledger()))
    assert any("seed" in note for note in notes_on(example_ledger(secure=False)))


def test_a_group_has_as_many_times_the_epsilon_and_soon_no_bound():
    three = group_privacy(1.0, 1e-5, 3)
    assert three.epsilon == 3.0
    assert three.delta == pytest.approx(3 * 2.718281828**2 * 1e-5)
    assert not three.empty
    assert group_privacy(1.0, 1e-5, 1).delta == pytest.approx(1e-5)
    assert group_privacy(1.0, 1e-5, 200).empty
    assert group_privacy(1.0, 0.0, 200) == type(three)(200, 200.0, 0.0, False)


def test_a_certificate_says_where_the_group_has_no_bound(base, tmp_path):
    many = base.unlearn(records(), range(12), tmp_path / "um", TUNING).certificate
    assert many.group(12).empty
    assert many.epsilon_group(12) == 12 * base.ledger.epsilon
    assert "for all 12 together epsilon is 24, which says nothing" in many.statement.replace("23.99", "24").replace(
        "23.98", "24"
    )
    assert many.record()["group"]["empty"]


def test_adapters_are_trained_alone_and_stored_merged(start, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    base = DPBase.fit(
        start, records(), tmp_path / "base", tokenizer=make_tokenizer(), mechanism=HOW, peft_config=config, seed=1
    )
    assert base.ledger.account["adapters"]
    assert any("must be public" in note for note in notes_on(base.ledger))
    was, now = load_model(start).state_dict(), load_model(base.folder).state_dict()
    assert {name.split(".")[-2] for name in was if not torch.equal(was[name], now[name])} == {"q_proj", "v_proj"}
    assert base.unlearn(records(), FORGET, tmp_path / "um", TUNING).certificate is not None


def test_the_same_seed_gives_the_same_base_and_leaves_the_callers_chance_alone(base, start, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again = DPBase.fit(start, records(), tmp_path / "again", tokenizer=make_tokenizer(), mechanism=HOW, seed=3)
    assert torch.rand(1) == expected
    assert again.ledger.weights == base.ledger.weights
    other = DPBase.fit(start, records(), tmp_path / "other", tokenizer=make_tokenizer(), mechanism=HOW, seed=4)
    assert other.ledger.weights != base.ledger.weights
