"""S3T's folder: a killed fit goes on, deletions are whole, nothing that saw a deleted record stays, and a folder is what it says."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from sharding import (
    QUICK,
    in_slice,
    make_labelled_texts,
    make_s3t,
    make_text_classifier,
    make_tokenizer,
    make_vit,
    unsynced,
)

from helpers.tiny import make_images
from unwrite.errors import DataError, RunError
from unwrite.forget.sharded import training
from unwrite.forget.sharded.ledger import Ledger, placed
from unwrite.forget.sharded.model import ShardedModel
from unwrite.forget.sharded.tasks import record_ids
from unwrite.forget.sharded.training import loaded
from unwrite.runs import claimed, hash_model

__all__ = ["unsynced"]


@pytest.fixture
def images():
    return make_images()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted") / "out"
    make_s3t().fit(make_vit(), make_images(), folder)
    return folder


@pytest.fixture
def sharded(fitted, tmp_path):
    return ShardedModel.open(shutil.copytree(fitted, tmp_path / "out"), make_vit())


def nodes(folder):
    return sorted(path.name for path in (folder / "nodes").iterdir())


# The ledger.


def test_a_records_place_is_of_its_name_and_the_seed_alone(sharded, images):
    few = images.subset(images.index[5:30])
    names = record_ids(few)
    assert {name: placed(name, 0, 2, 2) for name in names} == {
        name: (one.shard, one.slice) for name, one in sharded.ledger.plan.records.items() if name in names
    }
    assert placed("7", 0, 64, 64) != placed("7", 1, 64, 64)
    counts = [sum(placed(str(name), 0, 3, 4) == (s, j) for name in range(6000)) for s in range(3) for j in range(4)]
    assert all(400 < count < 600 for count in counts)


def test_texts_are_named_by_what_they_say():
    rows = make_labelled_texts()
    assert record_ids(rows[10:20]) == record_ids(rows)[10:20]


def test_given_places_are_kept(tmp_path, images):
    places = {str(one): (one % 2, one // 2 % 2) for one in range(48)}
    sharded = make_s3t().fit(make_vit(), images, tmp_path / "out", places=places)
    assert {name: (one.shard, one.slice) for name, one in sharded.ledger.plan.records.items()} == places


def test_a_note_says_what_an_increment_saw(sharded):
    note = json.loads((sharded.ledger.folder / "nodes" / "0-1.0" / "node.json").read_text())
    below = json.loads((sharded.ledger.folder / "nodes" / "0-1" / "node.json").read_text())
    assert note["prefix"] == [1, 0]
    assert note["parent"] == below["weights"]
    assert {*note["saw"]} == {"0", "1"}
    assert note["rows"] == len(in_slice(sharded, 0, 0)) + len(in_slice(sharded, 0, 1))
    assert note["seed"] != below["seed"]


# Deletion.


def test_a_deletion_trains_nothing_and_leaves_nothing_that_saw_the_record(sharded, images, monkeypatch):
    monkeypatch.setattr(training, "fit_rows", None)
    old = sharded.model(0)
    done = sharded.delete(in_slice(sharded, 0, 1)[0])
    assert done.stages == ((0, (0, 1)), (0, (1,)), (0, (1, 0)))
    assert done.queue == ()
    assert nodes(sharded.ledger.folder) == ["0-0", "1-0", "1-0.1", "1-1", "1-1.0"]
    assert sharded.model(0) is not old
    again = ShardedModel.open(sharded.ledger.folder, make_vit())
    assert again.served == {0: (0,), 1: (0, 1)}
    assert torch.equal(again.predict(images), sharded.predict(images))


def test_a_second_deletion_in_a_dead_slice_is_noted(sharded):
    first, second = in_slice(sharded, 0, 1)[:2]
    sharded.delete(first)
    assert sharded.delete(second).stages == ()
    assert sharded.ledger.remaining(0, 1) == sorted(in_slice(sharded, 0, 1)[2:])
    assert [one["records"] for one in sharded.certificate().deleted] == [[first], [second]]


def test_deletions_in_any_order_leave_the_same(tmp_path, images):
    one = make_s3t(n_slices=3, budget=1).fit(make_vit(), images, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    two = ShardedModel.open(tmp_path / "two", make_vit())
    names = [in_slice(one, *place)[0] for place in ((0, 1), (1, 2), (0, 2))]
    for name in names:
        one.delete(name)
    two.delete(names[::-1])
    assert one.served == two.served == {0: (0,), 1: (0, 1)}
    assert torch.equal(one.predict(images), two.predict(images))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (["0", "99"], r"1 of 2 records are in no slice \(first: '99'\)"),
        (["0", "0"], "the record '0' is named more than once"),
        ([], "no records are given to delete"),
        (["1", "3"], r"1 of 2 records are deleted already \(first: '3', on 20"),
    ],
)
def test_a_deletion_of_what_nobody_knows_or_twice_is_refused_and_changes_nothing(sharded, records, message):
    sharded.delete(3)
    before = {path: path.read_bytes() for path in sharded.ledger.folder.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=message):
        sharded.delete(records)
    assert {path: path.read_bytes() for path in sharded.ledger.folder.rglob("*") if path.is_file()} == before


def test_a_deletion_during_a_training_is_refused(sharded):
    with claimed(sharded.ledger.folder), pytest.raises(RunError, match="is in use by process"):
        sharded.delete(3)
    assert not (sharded.ledger.folder / "deletions.json").exists()


def test_a_deletion_that_was_killed_is_finished_when_the_folder_is_opened(sharded, images, monkeypatch):
    name, folder = in_slice(sharded, 0, 1)[0], sharded.ledger.folder
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sharded.delete(name)
    assert len(nodes(folder)) == 8
    again = ShardedModel.open(folder, make_vit())
    assert again.served == sharded.served == {0: (0,), 1: (0, 1)}
    assert len(nodes(folder)) == 5
    assert torch.equal(again.predict(images), sharded.predict(images))


def test_who_serves_hears_of_another_processs_deletion(sharded):
    server = ShardedModel.open(sharded.ledger.folder, make_vit())
    old = server.model(0)
    sharded.delete(in_slice(sharded, 0, 1)[0])
    assert server.served[0] == (0,)
    assert server.model(0) is not old


def test_what_a_killed_training_left_of_a_deleted_record_goes_too(tmp_path, images, monkeypatch):
    folder = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(training, "write_increment", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make_s3t(training=replace(QUICK, epochs=2)).fit(make_vit(), images, folder)
    (partial,) = (folder / "partial").iterdir()
    assert list(partial.glob("epoch-1/*"))
    (folder / "nodes" / ".0-0.0123456789ab").mkdir(parents=True)
    ledger = Ledger.open(folder)
    ledger.delete([ledger.remaining(0, 0)[0]])
    assert not list((folder / "partial").iterdir())
    assert not list((folder / "nodes").iterdir())


# The certificate.


def test_a_certificate_lists_what_every_active_tensor_saw(sharded):
    whole = sharded.certificate()
    assert {(one["shard"], tuple(one["slices"])) for one in whole.tensors} == {*sharded.ledger.notes}
    name = in_slice(sharded, 0, 1)[0]
    sharded.delete(name)
    left = sharded.certificate()
    assert left.guarantee == "exact"
    assert {tuple(one["slices"]) for one in left.tensors if one["shard"] == 0} == {(0,)}
    assert {*left.slices} == {"0-0", "1-0", "1-1"}
    assert name not in {one for names in left.slices.values() for one in names}
    assert {tuple(one["slices"]) for one in left.tensors if one["in use"]} == {(0,), (0, 1)}
    assert json.loads(json.dumps(left.record())) == left.record()


def test_a_certificate_is_refused_where_something_is_left_or_changed(sharded):
    folder = sharded.ledger.folder
    kept = shutil.copytree(folder / "nodes" / "0-1", folder.parent / "kept")
    sharded.delete(in_slice(sharded, 0, 1)[0])
    shutil.copytree(kept, folder / "nodes" / "0-1")
    with pytest.raises(RunError, match=r"0-1 saw a deleted record and is still there"):
        sharded.certificate()
    ShardedModel.open(folder, make_vit()).certificate()
    with torch.no_grad():
        sharded._base.head.bias.add_(1)
    with pytest.raises(RunError, match="the base has changed since the training"):
        sharded.certificate()


# A folder that is not what it says.


def damage(folder, what):
    nodes = folder / "nodes"
    if what == "weights":
        file = nodes / "0-0" / "increment.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    elif what == "other weights":
        shutil.copy(nodes / "1-0" / "increment.safetensors", nodes / "0-0" / "increment.safetensors")
    elif what == "no weights":
        (nodes / "0-0" / "increment.safetensors").unlink()
    elif what == "other node":
        shutil.rmtree(nodes / "0-0")
        shutil.copytree(nodes / "1-0", nodes / "0-0")
    elif what == "records":
        file = folder / "records.json"
        file.write_text(file.read_text().replace('"3": [', '"333": ['))
    elif what == "deletions":
        (folder / "deletions.json").write_text('[{"records": ["nobody"]}]')
    elif what == "plan":
        (folder / "plan.json").write_text((folder / "plan.json").read_text().replace('"seed": 0', '"seed": 1'))
    elif what == "version":
        (folder / "plan.json").write_text((folder / "plan.json").read_text().replace('"version": 1', '"version": 2'))
    elif what == "saw":
        file = nodes / "0-0" / "node.json"
        note = json.loads(file.read_text())
        file.write_text(json.dumps(note | {"saw": {"0": "0" * 16}}))
    elif what == "parent":
        file = nodes / "0-0.1" / "node.json"
        note = json.loads(file.read_text())
        file.write_text(json.dumps(note | {"parent": "0" * 64}))
    elif what == "note":
        (nodes / "0-0" / "node.json").write_text('{"shard": 0}')


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("weights", "is not as it was written"),
        ("other weights", "is not as it was written"),
        ("no weights", "is not as it was written"),
        ("other node", "is no note of this increment"),
        ("records", "is not the one that .*plan.json was written with"),
        ("deletions", "deletions.json is damaged"),
        ("plan", "0-0 doesn't match its ledger: it is of another plan"),
        ("version", "is of version 2; this unwrite reads 1"),
        ("saw", "0-0 doesn't match its ledger: it saw other records than the ledger has"),
        ("parent", "0-0.1 doesn't match its ledger: it stands on another increment"),
        ("note", "is no note of an increment"),
    ],
)
def test_a_ledger_that_does_not_match_its_increments_is_refused(sharded, what, message):
    damage(sharded.ledger.folder, what)
    with pytest.raises(RunError, match=message):
        ShardedModel.open(sharded.ledger.folder, make_vit())


def test_an_increment_without_the_one_it_stands_on_is_not_served_and_both_are_trained_again(sharded, images):
    before, folder = sharded.predict(images), sharded.ledger.folder
    shutil.rmtree(folder / "nodes" / "0-0")
    again = ShardedModel.open(folder, make_vit())
    assert again.served[0] == (1, 0)
    assert again.retrain(images, shards=[0]) == 2
    assert torch.equal(again.predict(images), before)


def test_an_increment_that_changes_while_it_is_served_is_never_read(sharded):
    damage(sharded.ledger.folder, "weights")
    with pytest.raises(RunError, match="is not as it was written"):
        sharded.model(0)


def test_another_base_is_refused(sharded, tmp_path):
    other = make_vit()
    with torch.no_grad():
        other.head.bias.add_(1)
    with pytest.raises(RunError, match="the base is another model than the increments stand on"):
        ShardedModel.open(sharded.ledger.folder, other)
    with pytest.raises(RunError, match="one whose head is drawn at random must be saved first"):
        loaded(lambda: other, hash_model(make_vit()))
    with pytest.raises(RunError, match="holds no sharded training"):
        ShardedModel.open(tmp_path / "nothing", make_vit())


# A fit that ends early, and one that goes on.


class Killed(BaseException):
    pass


def counting(monkeypatch, stop_at=None, error=Killed):
    """Counts stages that are trained; the one with this number ends by an error."""
    counts = []
    fit_rows = training.fit_rows

    def counted(*args, **kwargs):
        counts.append(1)
        if len(counts) == stop_at:
            raise error
        fit_rows(*args, **kwargs)

    monkeypatch.setattr(training, "fit_rows", counted)
    return counts


def test_a_killed_fit_goes_on_from_the_increments_that_are_whole(sharded, tmp_path, images, monkeypatch):
    with monkeypatch.context() as patched:
        counting(patched, stop_at=4)
        with pytest.raises(Killed):
            make_s3t().fit(make_vit(), images, tmp_path / "killed")
    counts = counting(monkeypatch)
    again = make_s3t().fit(make_vit(), images, tmp_path / "killed")
    assert len(counts) == 8 - 3
    assert torch.equal(again.predict(images), sharded.predict(images))
    assert len(counting(monkeypatch)) == len(make_s3t().fit(make_vit(), images, tmp_path / "killed").queue) == 0


def test_a_disk_that_fills_leaves_whole_increments_and_says_so(sharded, tmp_path, images, monkeypatch):
    save_file, written = safetensors.torch.save_file, []

    def full(tensors, file, *args):
        if "increment" in str(file):
            written.append(file)
        if len(written) == 3:
            Path(file).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, file, *args)

    folder = tmp_path / "full"
    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(RunError, match=r"the increment 0-1 could not be written to .*No space left.*make room"):
            make_s3t().fit(make_vit(), images, folder)
    assert nodes(folder) == ["0-0", "0-0.1"]
    again = make_s3t().fit(make_vit(), images, folder)
    assert torch.equal(again.predict(images), sharded.predict(images))


def test_other_settings_or_other_records_are_refused_in_the_same_folder(sharded, images):
    folder = sharded.ledger.folder
    with pytest.raises(RunError, match="was planned with another settings"):
        make_s3t(rank=3).fit(make_vit(), images, folder)
    with pytest.raises(RunError, match="was planned with another orders"):
        make_s3t(budget=1).fit(make_vit(), images, folder)
    with pytest.raises(DataError, match=r"the record '47' is missing, and .* was planned for others"):
        make_s3t().fit(make_vit(), images.subset(images.index[:-1]), folder)
    with pytest.raises(DataError, match="the record '0' says something else"):
        sharded.retrain(type(images)(1 - images.pixels, images.labels), shards=[0])
    (folder.parent / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds files of something else"):
        make_s3t().fit(make_vit(), images, folder.parent)


def test_deleted_records_may_be_missing_from_then_on(sharded, images):
    sharded.delete(in_slice(sharded, 0, 0)[0])
    sharded.delete(in_slice(sharded, 0, 1)[0])
    gone = torch.tensor([int(name) for name in sharded.ledger.deleted])
    assert sharded.retrain(images.where(~torch.isin(images.index, gone))) == 4


def test_a_slice_that_is_deleted_whole_is_trained_no_more(sharded, images):
    sharded.delete(in_slice(sharded, 0, 1))
    assert sharded.retrain(images, shards=[0]) == 0
    assert sharded.served[0] == (0,)


@pytest.mark.slow
def test_processes_train_shards_side_by_side_to_the_same_bits(sharded, tmp_path, images):
    two = make_s3t().fit(make_vit, images, tmp_path / "two", workers=2)
    assert torch.equal(two.predict(images), sharded.predict(images))


def test_a_text_classifier_opens_again(tmp_path):
    rows, tokenizer = make_labelled_texts(), make_tokenizer()
    one = make_s3t(n_shards=1, budget=1).fit(make_text_classifier(), rows, tmp_path / "out", processing_class=tokenizer)
    two = ShardedModel.open(tmp_path / "out", make_text_classifier(), processing_class=tokenizer)
    texts = [row.question for row in rows]
    assert torch.equal(one.predict(rows), two.predict(texts))
    assert len({len(tokenizer(text)["input_ids"]) for text in [*texts, "who ?"]}) > 1
    assert torch.allclose(one.predict(["who ?"]), one.predict([*texts, "who ?"])[-1:], atol=1e-6)  # padding is not read
