"""Files and folders are whole or absent, and locks end with their holder."""

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest

from unwrite.errors import Notice, RunError
from unwrite.runs import atomic, cache_dir, clean, lock, need_free, new_folder, scratch_folder, write_json, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_text_is_written_and_no_temporary_file_stays(tmp_path):
    write_text(tmp_path / "deep" / "a.txt", "höher")
    assert (tmp_path / "deep" / "a.txt").read_text(encoding="utf-8") == "höher"
    assert names(tmp_path / "deep") == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "old")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def begin(path, begun):
    """A writer that stays in the middle of its write."""

    def stay(_):
        begun.set()
        time.sleep(60)

    os.fsync = stay
    write_text(path, "new")


def test_the_next_write_removes_what_a_killed_one_left_and_not_what_another_is_writing(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [
        (context.Process(target=begin, args=(tmp_path / "a.txt", begun)), begun)
        for begun in [context.Event(), context.Event()]
    ]
    left = []
    for writer, begun in writers:
        writer.start()
        begun.wait()
        left.append(next(name for name in names(tmp_path) if name not in left))
    (tmp_path / ".a.txt.mine").touch()
    writers[0][0].kill()
    writers[0][0].join()
    write_text(tmp_path / "a.txt", "newer")
    assert names(tmp_path) == sorted([".a.txt.mine", left[1], "a.txt"])
    writers[1][0].kill()
    writers[1][0].join()


def test_a_writer_whose_file_is_taken_for_a_dead_ones_makes_another(tmp_path, monkeypatch):
    lock_file = fcntl.flock

    def taken(file, how):
        monkeypatch.setattr(fcntl, "flock", lock_file)
        os.unlink(file.name)

    monkeypatch.setattr(fcntl, "flock", taken)
    write_text(tmp_path / "a.txt", "new")
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_folder_that_goes_while_its_file_is_written_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: shutil.rmtree(tmp_path / "gone", ignore_errors=True))
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "gone" / "a.txt", "new")


def test_json_is_sorted_and_refuses_nan(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.index('"a"') < text.index('"b"')
    assert "é" in text
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["b"] == 1


def test_others_can_read_what_was_written(tmp_path):
    write_text(tmp_path / "a.txt", "")
    assert (tmp_path / "a.txt").stat().st_mode & 0o444 == 0o444


def test_a_folder_appears_whole(tmp_path):
    with new_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("1")
        assert not (tmp_path / "model").exists()
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "1"


def test_a_folder_that_failed_never_appears(tmp_path):
    def half_done():
        with new_folder(tmp_path / "model") as folder:
            (folder / "weights").write_text("1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half_done()
    assert names(tmp_path) == []


def test_a_new_folder_replaces_the_old_one_and_a_failed_one_does_not(tmp_path):
    for text in ("1", "2"):
        with new_folder(tmp_path / "model") as folder:
            (folder / text).write_text(text)
    assert names(tmp_path / "model") == ["2"]
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "model"):
        raise KeyboardInterrupt
    assert names(tmp_path / "model") == ["2"]
    assert names(tmp_path) == ["model"]


def hold(path, entered, seconds):
    with lock(path):
        entered.set()
        time.sleep(seconds)


def test_a_lock_waits_for_its_holder(tmp_path):
    context = multiprocessing.get_context("fork")
    entered = context.Event()
    holder = context.Process(target=hold, args=(tmp_path / "lock", entered, 0.5))
    holder.start()
    entered.wait()
    start = time.monotonic()
    with lock(tmp_path / "lock"):
        assert time.monotonic() - start > 0.2
    holder.join()


def test_a_lock_is_free_once_its_holder_is_killed(tmp_path):
    context = multiprocessing.get_context("fork")
    entered = context.Event()
    holder = context.Process(target=hold, args=(tmp_path / "lock", entered, 60))
    holder.start()
    entered.wait()
    holder.kill()
    holder.join()
    start = time.monotonic()
    with lock(tmp_path / "lock"):
        assert time.monotonic() - start < 5


def test_cache_is_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "here"))
    assert cache_dir("a", "b") == tmp_path / "here" / "a" / "b"
    assert (tmp_path / "here" / "a" / "b").is_dir()
    monkeypatch.delenv("UNWRITE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "unwrite"


def test_a_file_that_exists_is_replaced_only_when_asked(tmp_path):
    need_free(tmp_path / "new.json")
    (tmp_path / "old.json").touch()
    with pytest.raises(RunError, match=r"old\.json exists\. Choose another file, or pass overwrite=True"):
        need_free(tmp_path / "new.json", tmp_path / "old.json")
    need_free(tmp_path / "old.json", overwrite=True)
    with pytest.raises(RunError, match="is a folder"):
        need_free(tmp_path, overwrite=True)


def test_what_is_being_written_is_not_taken_for_what_a_kill_left(tmp_path):
    (tmp_path / ".a.txt.0123456789ab").write_text("half")
    (tmp_path / ".folder.0123456789ab").mkdir()
    with atomic.new_folder(tmp_path / "folder") as fresh:
        assert not atomic.left_behind(fresh)
        clean(tmp_path / "folder")
        assert fresh.is_dir()
    clean(tmp_path / "a.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_file_is_its_writers_until_it_has_its_name(tmp_path, monkeypatch):
    replace, seen = os.replace, []

    def before(source, target):
        seen.append(atomic.left_behind(Path(source)))
        clean(Path(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", before)
    write_text(tmp_path / "a.txt", "whole")
    assert seen == [False]
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_a_file_taken_away_before_it_was_locked_is_written_again(tmp_path, monkeypatch):
    replace, calls = os.replace, []

    def once(source, target):
        calls.append(source)
        if len(calls) == 1:
            os.unlink(source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", once)
    write_text(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_where_there_are_no_locks_nothing_counts_as_left_behind(number, tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError(number, os.strerror(number))

    (tmp_path / ".a.txt.0123456789ab").write_text("half")
    monkeypatch.setattr(atomic.fcntl, "flock", refuses)
    write_text(tmp_path / "a.txt", "whole")
    clean(tmp_path / "a.txt")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_scratch_folder_is_gone_after_the_block_though_the_disk_fails_once(tmp_path, monkeypatch):
    remove, failed = os.rmdir, []

    def fails_once(*given, **how):
        if not failed:
            failed.append(given)
            raise OSError(errno.ENOSPC, "No space left on device")
        remove(*given, **how)

    monkeypatch.setattr(os, "rmdir", fails_once)
    with scratch_folder(inside=tmp_path) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
    assert failed
    assert names(tmp_path) == []


def test_a_scratch_folder_that_the_disk_keeps_is_said_and_ends_nothing(tmp_path, monkeypatch):
    def fails(*given, **how):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "rmdir", fails)
    with (
        pytest.warns(Notice, match=r"temporary folder .* could not be removed \(Input/output error\)"),
        scratch_folder(inside=tmp_path),
    ):
        pass


def test_a_scratch_folder_is_removed_when_the_block_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), scratch_folder(inside=tmp_path):
        raise ZeroDivisionError
    assert names(tmp_path) == []
