"""A model is trained once for what it is made of, whoever asks, and a kill changes nothing."""

from __future__ import annotations

import errno
import json
import multiprocessing
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from helpers.architectures import tiny_model, tokens
from unwrite.errors import DataError, ModelError, NotFinite, Notice
from unwrite.models import TrainRecipe, causal_recipe, fitting, load_model, load_state, save, trained
from unwrite.runs import hash_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fit"


@dataclass
class Row:
    input_ids: list[int]
    labels: list[int]


@dataclass
class Rows:
    rows: list[Row]
    hash: str = field(default="rows")

    def __getitem__(self, index):
        return self.rows[index]

    def __len__(self):
        return len(self.rows)


def rows(count=7, lengths=(5, 9)):
    made = []
    for i in range(count):
        ids = tokens(1, lengths[i % len(lengths)], seed=i)[0].tolist()
        made.append(Row(ids, [-100, -100, *ids[2:]]))
    return Rows(made)


def counting(calls, name="counting", **settings):
    """A recipe on tensors that remembers what it was called with."""

    def fit(model, data, indices, seed, folder):
        calls.append((indices, seed, folder))
        with torch.no_grad():
            model.weight.add_(data[indices].sum())

    return TrainRecipe(lambda seed: nn.Linear(2, 2), fit, name=name, settings=settings)


def config(**settings):
    return tiny_model("llama", layers=2, **settings).config


def recipe(**changes):
    start = changes.pop("start", None) or config(attention_dropout=0.2)
    return causal_recipe(start, **{"epochs": 3, "lr": 1e-2, "batch_size": 3, **changes})


def test_the_same_model_is_trained_once():
    calls, data = [], torch.arange(6.0)
    first = trained(counting(calls), data, [0, 2], seed=1)
    assert trained(counting(calls), data.clone(), [2, 0], seed=1) == first
    assert [(indices, seed) for indices, seed, _ in calls] == [([0, 2], 1)]


def test_another_seed_row_datum_setting_or_name_is_another_model():
    calls, data = [], torch.arange(6.0)
    paths = [
        trained(counting(calls), data, [0, 2], 1),
        trained(counting(calls), data, [0, 2], 2),
        trained(counting(calls), data, [0, 3], 1),
        trained(counting(calls), data + 1, [0, 2], 1),
        trained(counting(calls, lr=1), data, [0, 2], 1),
        trained(counting(calls, name="other"), data, [0, 2], 1),
    ]
    assert len(set(paths)) == len(calls) == 6


def test_a_plain_module_is_read_back_and_says_what_made_it():
    data = torch.arange(6.0)
    path = trained(counting([], lr=3), data, [1, 5], seed=0)
    torch.manual_seed(0)
    fresh = nn.Linear(2, 2)
    expected = fresh.weight.detach() + 6
    assert torch.equal(load_state(nn.Linear(2, 2), path).weight, expected)
    story = json.loads((path / "unwrite.json").read_text())["provenance"]
    assert (story["recipe"], story["rows"], story["seed"], story["settings"]) == ("counting", 2, 0, {"lr": 3})


def test_the_callers_random_state_is_left_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    trained(counting([]), torch.arange(6.0), [0], seed=9)
    assert torch.equal(torch.rand(1), expected)


def test_a_training_that_dies_leaves_no_model_and_goes_on_in_its_own_folder(cache):
    calls, data = [], torch.arange(6.0)

    def dies(model, data, indices, seed, folder):
        (folder / "checkpoint").write_text("half way")
        raise KeyboardInterrupt

    good = counting(calls)
    with pytest.raises(KeyboardInterrupt):
        trained(TrainRecipe(good.build, dies, "counting"), data, [0], 1)
    home = next(cache.iterdir())
    assert not (home / "model").exists()
    assert (home / "partial" / "checkpoint").read_text() == "half way"
    path = trained(good, data, [0], 1)
    assert calls[0][2] == home / "partial"
    assert path == home / "model"
    assert not (home / "partial").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "unwrite.json"])
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1] + b"?", lambda data: bytes(len(data))])
def test_a_damaged_model_is_trained_again(damage, file):
    calls, data = [], torch.arange(6.0)
    path = trained(counting(calls), data, [0, 2], seed=1)
    expected = (path / "model.safetensors").read_bytes()
    (path / file).write_bytes(damage((path / file).read_bytes()))
    with pytest.warns(Notice, match=f"{file} is not as it was written"):
        assert trained(counting(calls), data, [0, 2], seed=1) == path
    assert len(calls) == 2
    assert (path / "model.safetensors").read_bytes() == expected
    trained(counting(calls), data, [0, 2], seed=1)
    assert len(calls) == 2


def test_a_model_is_trained_elsewhere_where_the_cache_is_full(cache, monkeypatch):
    """Once a full disk has stopped it, and each time where no folder can be made."""
    calls, data, full = [], torch.arange(6.0), []
    real = fitting.save

    def fills(model, folder, **options):
        if str(folder).startswith(str(cache)):
            full.append(folder)
            raise ModelError(f"{folder} could not be written.") from OSError(errno.ENOSPC, "No space left on device")
        return real(model, folder, **options)

    monkeypatch.setattr(fitting, "save", fills)
    with pytest.warns(Notice, match="cache can't be written"):
        path = trained(counting(calls), data, [0, 2], seed=1)
    assert len(full) == 1
    assert load_state(nn.Linear(2, 2), path).weight.shape == (2, 2)
    with pytest.raises(ModelError, match="not this"):
        trained(TrainRecipe(lambda seed: nn.Linear(2, 2), _refuses, "refuses"), data, [0], 1)
    cache.parent.rename(cache.parent.with_name("away"))
    cache.parent.write_text("")
    with pytest.warns(Notice, match="cache can't be written"):
        assert trained(counting(calls), data, [0, 2], seed=1) != path


def _refuses(model, data, indices, seed, folder):
    raise ModelError("not this")


def _ask(path):
    def fit(model, data, indices, seed, folder):
        with open(path, "a") as file:
            file.write("trained\n")

    torch.set_num_threads(1)
    trained(TrainRecipe(lambda seed: nn.Linear(2, 2), fit, "slow"), [1, 2], [0], 0)


def test_two_processes_that_ask_at_once_train_once(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_ask, args=(tmp_path / "log",)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "trained\n"


@pytest.mark.parametrize(
    ("indices", "says"),
    [([], "no indices"), ([1, 1], "row 1 is in the indices more than once"), ([6], "index 6 is outside"), ([-1], "-1")],
)
def test_refuses_indices_that_name_no_rows(indices, says):
    with pytest.raises(DataError, match=says):
        trained(counting([]), torch.arange(6.0), indices, 0)


def test_refuses_data_that_cannot_be_hashed_and_says_what_it_needs():
    with pytest.raises(DataError, match="`hash` attribute"):
        trained(counting([]), [object()], [0], 0)


def test_refuses_settings_that_are_not_json():
    with pytest.raises(ModelError, match="settings of recipe 'counting' are not plain JSON"):
        trained(counting([], x=object()), torch.arange(6.0), [0], 0)


def test_a_causal_model_learns_its_rows_and_not_the_others():
    data = rows(8)
    model = load_model(trained(recipe(start=config(), epochs=30), data, range(4), seed=0))

    def loss(row):
        return model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss.item()

    assert max(loss(data[i]) for i in range(4)) < 0.2
    assert min(loss(data[i]) for i in range(4, 8)) > 2


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(monkeypatch, tmp_path):
    def fingerprint(seed, where):
        monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / where))
        return hash_model(load_model(trained(recipe(), rows(), range(7), seed)))

    assert fingerprint(0, "a") == fingerprint(0, "b") != fingerprint(1, "c")


@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize("muon", [False, True])
def test_a_killed_causal_training_goes_on_to_the_same_weights(monkeypatch, tmp_path, steps, muon):
    """Three epochs of three steps, with dropout, killed in the first, second or third epoch."""
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "whole"))
    expected = hash_model(load_model(trained(recipe(muon=muon), rows(), range(7), 0)))
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "killed"))
    real, done = torch.optim.AdamW.step, []

    def killed(self, *args, **kwargs):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(1)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(recipe(muon=muon), rows(), range(7), 0)
    again = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (again.append(1), real(self, *a, **k))[1])
    assert hash_model(load_model(trained(recipe(muon=muon), rows(), range(7), 0))) == expected
    assert len(again) == 9 - 3 * (steps // 3)


def test_a_damaged_checkpoint_is_not_gone_on_from(monkeypatch, cache):
    real, done = torch.optim.AdamW.step, []

    def killed(self, *args, **kwargs):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(1)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(recipe(), rows(), range(7), 0)
    state = next(cache.rglob("epoch-1/state.safetensors"))
    content = bytearray(state.read_bytes())
    content[-4:] = bytes(4)  # still a file of tensors
    state.write_bytes(content)
    again = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (again.append(1), real(self, *a, **k))[1])
    with pytest.warns(Notice, match="state.safetensors is not as it was written"):
        trained(recipe(), rows(), range(7), 0)
    assert len(again) == 9


def test_muon_has_the_inner_matrices_and_adamw_all_else():
    from unwrite.models.recipe import CausalTraining, _optimisers

    model = tiny_model("llama", layers=2)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon, adamw = _optimisers(model, CausalTraining(1, 1e-3, 1, muon=True))
    of = [{names[id(one)] for group in each.param_groups for one in group["params"]} for each in (muon, adamw)]
    assert of[0] == {name for name in names.values() if name.endswith("_proj.weight")}
    assert of[0] | of[1] == set(names.values())
    assert not of[0] & of[1]
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= of[1]


def test_the_optimiser_is_in_the_hash_and_the_ordinary_one_changes_no_hash():
    assert "muon" not in recipe().settings
    assert recipe(muon=True).settings["muon"] is True


def test_a_batch_is_averaged_over_its_labelled_tokens_whatever_the_padding():
    """One step on a batch of unequal rows moves the weights along the gradient of the mean over their tokens."""
    data, start = rows(3, lengths=(4, 9, 6)), config()
    how = {"start": start, "epochs": 1, "batch_size": 3, "warmup": 0.0, "clip": 1e9}
    torch.manual_seed(0)
    model = recipe(**how).build(0).train()
    counts, total = 0, 0.0
    for row in data.rows:
        labels = torch.tensor([row.labels])
        count = int((labels[:, 1:] != -100).sum())
        total = total + model(input_ids=torch.tensor([row.input_ids]), labels=labels).loss * count
        counts += count
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    (total / counts).backward()
    optimiser.step()
    fitted = load_model(trained(recipe(**how), data, range(3), 0))
    ids = tokens()
    torch.testing.assert_close(fitted(ids).logits, model.eval()(ids).logits, rtol=1e-3, atol=1e-3)


def test_a_folder_is_trained_further_and_its_weights_are_in_the_hash(tmp_path):
    for seed in (0, 1):
        save(tiny_model("llama", seed=seed), tmp_path / f"m{seed}")
    first = recipe(start=tmp_path / "m0")
    assert hash_model(first.build(0)) == hash_model(load_model(tmp_path / "m0"))
    assert first.settings != recipe(start=tmp_path / "m1").settings


def test_the_rate_rises_to_its_peak_and_falls_to_nothing():
    from unwrite.models.recipe import CausalTraining

    how = CausalTraining(epochs=1, lr=1.0, batch_size=1, warmup=0.2)
    rates = [how.rate(step, 10) for step in range(11)]
    assert rates == [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0]


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"batch_size": 0}, {"warmup": 1.5}, {"clip": 0.0}],
)
def test_refuses_settings_without_a_meaning(wrong):
    with pytest.raises(ModelError, match=f"{next(iter(wrong))}=.* has no meaning"):
        recipe(**wrong)


def test_refuses_rows_without_labels_or_with_too_few():
    with pytest.raises(DataError, match="row 0 has no labelled token"):
        trained(recipe(), Rows([Row([3, 4], [-100, -100])]), [0], 0)
    with pytest.raises(DataError, match="row 0 has 2 tokens and 1 labels"):
        trained(recipe(), Rows([Row([3, 4], [4])], hash="short"), [0], 0)


def test_stops_when_the_loss_is_no_number():
    def broken(seed):
        model = good.build(seed)
        nn.init.constant_(model.lm_head.weight, float("nan"))
        return model

    good = recipe()
    with pytest.raises(NotFinite, match="loss is nan at step 1 of 9"):
        trained(TrainRecipe(broken, good.fit, "broken"), rows(), range(7), 0)


def test_refuses_to_train_an_adapter_folder(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="Merge an adapter first"):
        recipe(start=tmp_path)
