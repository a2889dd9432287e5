"""The cache: made once, dropped and made again when damaged, and no obstacle when it can't be written."""

import errno
import os
import stat
from pathlib import Path

import pytest

from unwrite.errors import MethodError, Notice, noticing
from unwrite.runs import atomic, cache, cache_dir, cached_files, cached_json, sound, write_text
from unwrite.runs.cache import clean, drop, seal


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counted:
    """A value that knows how often it was made."""

    def __init__(self, value):
        self.value, self.times = value, 0

    def __call__(self):
        self.times += 1
        return self.value


def counted_files(content="whole"):
    made = Counted(content)

    def make(folder):
        (folder / "a.txt").write_text(made())
        (folder / "deep").mkdir()
        (folder / "deep" / "b.txt").write_text("b")

    def get(key="key"):
        return cached_files("kind", key, make, lambda folder: (folder / "a.txt").read_text())

    return made, get


def damaged(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "gone":
        return file.unlink()
    bad = {"empty": b"", "cut": content[:-3], "zeroed": bytes(len(content)), "other": b'{"sum":"0","value":[7]}'}
    file.write_bytes(bad[how] if how in bad else content.replace(b"1", b"2").replace(b"whole", b"whale"))
    return None


HOW = ["empty", "cut", "zeroed", "other", "one digit"]


def test_a_value_is_computed_once():
    made = Counted({"a": [1, 2.5, "ü", None]})
    assert [cached_json(("s", "t"), "n", made) for _ in range(3)] == [made.value] * 3
    assert made.times == 1


@pytest.mark.parametrize("how", HOW)
def test_a_damaged_value_is_noticed_and_computed_again(how, own_cache):
    made = Counted([1, 1])
    cached_json(("s",), "n", made)
    damaged(next(own_cache.rglob("n.sealed.json")), how)
    with noticing() as said, pytest.warns(Notice):
        assert cached_json(("s",), "n", made) == [1, 1]
    assert made.times == 2
    assert len(said) == 1
    assert "was damaged" in said[0]
    assert cached_json(("s",), "n", made) == [1, 1]
    assert made.times == 2


def test_a_value_of_another_shape_is_computed_again():
    cached_json(("s",), "n", Counted({"a": 1}))
    with pytest.warns(Notice, match="'b'"):
        assert cached_json(("s",), "n", Counted({"b": 2}), lambda value: {"b": value["b"]}) == {"b": 2}


def test_a_value_that_cannot_be_read_back_is_not_kept(own_cache):
    with pytest.raises(KeyError):
        cached_json(("s",), "n", Counted({"a": 1}), lambda value: value["b"])
    assert not list(own_cache.rglob("*.json"))


def test_files_are_made_once():
    made, get = counted_files()
    assert [get() for _ in range(3)] == ["whole"] * 3
    assert made.times == 1
    assert get("other key") == "whole"
    assert made.times == 2


@pytest.mark.parametrize("file", ["a.txt", "deep/b.txt"])
@pytest.mark.parametrize("how", [*HOW, "gone"])
def test_a_damaged_file_is_noticed_and_made_again(how, file, own_cache):
    made, get = counted_files("whole 1")
    get()
    (own_cache / "kind/key/deep/b.txt").write_text("1")
    seal(own_cache / "kind/key")
    damaged(own_cache / "kind/key" / file, how)
    with pytest.warns(Notice, match=f"{file} is not as it was written"):
        assert get() == "whole 1"
    assert made.times == 2
    get()
    assert made.times == 2


def test_an_entry_with_a_file_too_many_is_made_again(own_cache):
    made, get = counted_files()
    get()
    (own_cache / "kind/key/more.txt").write_text("")
    with pytest.warns(Notice, match=r"more\.txt"):
        get()
    assert made.times == 2


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a.txt": 1}'])
def test_damaged_sums_are_damage(content, own_cache):
    made, get = counted_files()
    get()
    (own_cache / "kind/key.sums").write_text(content)
    with pytest.warns(Notice):
        assert get() == "whole"
    assert made.times == 2


def test_an_entry_without_sums_is_taken_and_gets_them(own_cache):
    made, get = counted_files()
    get()
    (own_cache / "kind/key.sums").unlink()
    assert get() == "whole"
    assert made.times == 1
    (own_cache / "kind/key/a.txt").write_text("whale")
    with pytest.warns(Notice):
        assert get() == "whole"


def test_files_that_cannot_be_read_are_made_again_but_once(own_cache):
    made, _ = counted_files()

    def read(folder):
        raise ValueError("no such thing")

    def make(folder):
        (folder / "a.txt").write_text(made())

    cached_files("kind", "key", make, lambda folder: None)
    with pytest.warns(Notice, match="no such thing"), pytest.raises(ValueError, match="no such thing"):
        cached_files("kind", "key", make, read)
    assert made.times == 2


def test_an_error_while_making_leaves_nothing_and_is_no_matter_of_the_cache(own_cache):
    made = Counted("half")

    def make(folder):
        (folder / "half").write_text(made())
        raise MethodError("no")

    with pytest.raises(MethodError):
        cached_files("kind", "key", make, lambda folder: None)
    assert made.times == 1
    assert [path.name for path in (own_cache / "kind").iterdir()] == ["key.lock"]


def test_what_a_kill_left_is_removed(own_cache):
    _, get = counted_files()
    left = cache_dir("kind") / ".key.0123456789ab"
    left.mkdir()
    (left / "half").write_text("")
    (cache_dir("kind") / ".key.sums.0123456789ab").write_text("")
    get()
    assert sorted(path.name for path in (own_cache / "kind").iterdir()) == ["key", "key.lock", "key.sums"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.EDQUOT])
def test_a_cache_that_cannot_be_written_is_slow_and_says_so(number, own_cache, monkeypatch):
    def refuses(*_, **__):
        raise OSError(number, os.strerror(number))

    for name in ("write_text", "write_json", "new_folder"):
        monkeypatch.setattr(cache, name, refuses)
    made, get = counted_files()
    with pytest.warns(Notice, match=os.strerror(number)):
        assert [get(), get()] == ["whole"] * 2
    assert made.times == 2
    value = Counted([1])
    with pytest.warns(Notice, match="UNWRITE_CACHE"):
        assert [cached_json(("s",), "n", value) for _ in range(2)] == [[1]] * 2
    assert value.times == 2


def test_a_full_disk_told_by_safetensors_counts_as_one(own_cache, monkeypatch):
    full = Counted(True)

    def make(folder):
        if full() and full.times == 1:
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
        (folder / "a.txt").write_text("whole")

    with pytest.warns(Notice, match="No space left"):
        assert cached_files("kind", "key", make, lambda folder: (folder / "a.txt").read_text()) == "whole"


def test_a_cache_folder_that_cannot_be_made_is_slow(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "file" / "cache"))
    _, get = counted_files()
    with pytest.warns(Notice, match="can't be written"):
        assert [get(), get()] == ["whole"] * 2
    with pytest.warns(Notice, match="can't be written"):
        assert cached_json(("s",), "n", Counted(1)) == 1


@pytest.mark.parametrize("sums", [True, False])
def test_entries_can_be_read_where_nothing_can_be_written(sums, own_cache, monkeypatch):
    made, get = counted_files()
    get()
    if not sums:
        (own_cache / "kind/key.sums").unlink()

    def refuses(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(cache, "lock", refuses)
    monkeypatch.setattr(cache, "write_json", refuses)
    assert get() == "whole"
    assert made.times == 1


def test_soundness_drops_what_is_damaged(own_cache):
    entry = cache_dir("kind") / "entry"
    assert not sound(entry)
    entry.mkdir()
    (entry / "a").write_text("1")
    assert sound(entry)
    (entry / "a").write_text("2")
    with pytest.warns(Notice):
        assert not sound(entry)
    assert not entry.exists()
    assert not entry.with_name("entry.sums").exists()


def test_a_dropped_link_leaves_what_it_points_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    drop(tmp_path / "link")
    assert (tmp_path / "real").is_dir()
    assert not (tmp_path / "link").is_symlink()


def test_the_cache_is_its_users_own_and_files_have_the_umask(own_cache, tmp_path):
    before = os.umask(0o027)
    try:
        cached_json(("s",), "n", Counted(1))
        write_text(tmp_path / "a.txt", "")
        with atomic.new_folder(tmp_path / "folder") as fresh:
            (fresh / "b").write_text("")
    finally:
        os.umask(before)
    mode = {path: stat.S_IMODE(path.stat().st_mode) for path in (own_cache, tmp_path / "a.txt", tmp_path / "folder")}
    assert list(mode.values()) == [0o700, 0o640, 0o750]


def test_files_are_on_the_disk_before_a_folder_has_its_name(tmp_path, monkeypatch):
    order = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (order.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name), sync(handle))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("renamed"), replace(a, b)))
    with atomic.new_folder(tmp_path / "folder") as fresh:
        (fresh / "deep").mkdir()
        (fresh / "deep" / "b").write_text("b")
    assert order.index("b") < order.index("renamed")
    assert order.index("deep") < order.index("renamed")
    assert order[-1] == tmp_path.name  # the name itself, too
    write_text(tmp_path / "a.txt", "a")
    assert order[-1] == tmp_path.name


def test_a_kill_while_an_entry_is_dropped_leaves_no_half_of_it(own_cache, monkeypatch):
    made, get = counted_files()
    get()

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            drop(own_cache / "kind" / "key")
    assert not (own_cache / "kind" / "key").exists()
    assert get() == "whole"
    assert made.times == 2
    assert sorted(path.name for path in (own_cache / "kind").iterdir()) == ["key", "key.lock", "key.sums"]


def test_the_name_of_an_entry_is_no_pattern(own_cache):
    left, others = cache_dir("kind") / ".a[1]*.0123456789ab", cache_dir("kind") / ".a1b.0123456789ab"
    left.write_text("")
    others.write_text("")
    clean(own_cache / "kind" / "a[1]*")
    assert [path.name for path in (own_cache / "kind").iterdir()] == [others.name]
    clean(own_cache / "no such kind" / "a")


def test_an_entry_that_another_process_has_dropped_already_is_no_error(own_cache):
    entry = cache_dir("kind") / "key"
    drop(entry)
    entry.mkdir()
    drop(entry)
    drop(entry)
    assert list((own_cache / "kind").iterdir()) == []
