"""Files that are replaced whole or not at all."""

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys

import pytest

from frostleaf.io.atomic import atomic_write, remove, remove_temporaries


def write(file, text):
    with atomic_write(file) as temporary:
        with open(temporary, "w") as handle:
            handle.write(text)
        assert os.path.dirname(temporary) == os.path.realpath(os.path.dirname(file))


@pytest.mark.parametrize("name", ["a.txt", "x" * 255, "ä" * 127, ".hidden"])
def test_a_file_is_written_and_replaced_and_nothing_else_is_left(tmp_path, name):
    for text in ("old", "new"):
        write(tmp_path / name, text)
        assert (tmp_path / name).read_text() == text
        assert os.listdir(tmp_path) == [name]


def test_after_an_error_the_old_file_is_there_alone(tmp_path):
    def fail_half_way():
        with atomic_write(tmp_path / "a") as temporary, open(temporary, "w") as handle:
            handle.write("half")
            raise KeyError

    write(tmp_path / "a", "old")
    with pytest.raises(KeyError):
        fail_half_way()
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a"):
        pass  # nothing was written
    assert (tmp_path / "a").read_text() == "old"


def test_the_old_file_stays_until_the_new_one_is_on_disk(tmp_path, monkeypatch):
    write(tmp_path / "a", "old")
    calls = []
    fsync, replace = os.fsync, os.replace

    def seen(name, function):
        def call(*args):
            calls.append((name, (tmp_path / "a").read_text()))
            function(*args)

        return call

    monkeypatch.setattr(os, "fsync", seen("fsync", fsync))
    monkeypatch.setattr(os, "replace", seen("replace", replace))
    write(tmp_path / "a", "new")
    assert calls == [("fsync", "old"), ("replace", "old"), ("fsync", "new")]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    write(tmp_path / "there" / "a", "old")
    (tmp_path / "link").symlink_to("there/a")
    with atomic_write(tmp_path / "link") as temporary:
        assert os.path.dirname(temporary) == os.path.realpath(tmp_path / "there")
        with open(temporary, "w") as handle:
            handle.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "a").read_text() == "new"


def test_the_mode_of_the_old_file_is_kept_and_a_new_one_has_the_usual(tmp_path):
    write(tmp_path / "a", "old")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "a").chmod(0o640)
    write(tmp_path / "a", "new")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_what_is_not_finished_is_removed_by_the_name_it_would_have_had(tmp_path):
    with atomic_write(tmp_path / "a-b.txt") as one, atomic_write(tmp_path / "a.txt") as other:
        rest = [str(tmp_path / "a-b.txt"), str(tmp_path / ".frostleaf-lock"), other]
        for path in (one, *rest):
            open(path, "w").close()
        remove_temporaries(str(tmp_path), {"a-b.txt"}.__contains__)
        assert {os.path.join(tmp_path, name) for name in os.listdir(tmp_path)} == {*rest}
        open(one, "w").close()


def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, atomic_write(tmp_path / "no" / "a"):
        pass
    assert raised.value.filename == os.path.realpath(tmp_path / "no")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_replaced(tmp_path, make):
    path = tmp_path / "there"
    make(path)
    before = os.stat(path)
    for given in (path, os.fsencode(path)):
        with pytest.raises(OSError, match="there"), atomic_write(given):
            raise AssertionError("nothing is written")
    assert os.stat(path) == before
    assert os.listdir(tmp_path) == ["there"]


@pytest.mark.parametrize("function", ["stat", "lstat"])
def test_a_file_that_another_process_removes_while_it_is_looked_at_is_written(tmp_path, monkeypatch, function):
    file, real = tmp_path / "a", getattr(os, function)

    def removed(path, *given, **options):
        status = real(path, *given, **options)
        if os.fspath(path) == str(file):
            file.unlink(missing_ok=True)
        return status

    file.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, function, removed)
        write(file, "new")
    assert file.read_text() == "new"


KILLED = (
    "import os, signal, sys; from frostleaf.io.atomic import atomic_write\n"
    "with atomic_write(sys.argv[1]) as temporary, open(temporary, 'w') as file:\n"
    "    file.write('half'), file.flush(), print('ready', flush=True), sys.stdin.read()\n"
)


def test_what_a_killed_process_left_is_removed_by_who_writes_the_same_file_and_what_others_write_is_not(tmp_path):
    file, other = tmp_path / "a", tmp_path / ".frostleaf-0123456789abcdef-b"
    other.touch()
    command = [sys.executable, "-c", KILLED, file]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        write(file, "new")
        with atomic_write(file) as temporary:
            shutil.copy(file, temporary)
            write(file, "new")
            assert len(os.listdir(tmp_path)) == 4
        process.kill()
    write(file, "newest")
    assert {*os.listdir(tmp_path)} == {"a", other.name}
    assert file.read_text() == "newest"


def test_where_nothing_can_be_locked_nothing_is_removed(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    left = tmp_path / ".frostleaf-0123456789abcdef-a"
    left.touch()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refused)
        write(tmp_path / "a", "new")
        assert {*os.listdir(tmp_path)} == {"a", left.name}
    write(tmp_path / "a", "new")
    assert os.listdir(tmp_path) == ["a"]


def test_a_path_may_be_bytes(tmp_path):
    with atomic_write(os.fsencode(tmp_path / "file")) as temporary, open(temporary, "w") as handle:
        handle.write("new")
    assert (tmp_path / "file").read_text() == "new"


def test_a_temporary_file_that_another_process_is_about_to_remove_is_not_the_one_that_is_written(tmp_path, monkeypatch):
    flock, others = fcntl.flock, []

    def after_another(handle, operation):
        if not others:
            (name,) = os.listdir(tmp_path)
            others.append(os.open(tmp_path / name, os.O_RDWR))
            flock(others[0], operation)
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", after_another)
    with atomic_write(tmp_path / "a") as temporary, open(temporary, "w") as handle:
        assert not os.path.samestat(os.fstat(others[0]), os.stat(temporary))
        handle.write("new")
    assert (tmp_path / "a").read_text() == "new"
    os.close(others[0])


@pytest.mark.parametrize("name", ["stat", "utime"])
def test_nothing_is_left_where_the_disk_fails_as_the_temporary_file_is_made(name, tmp_path, monkeypatch):
    function = getattr(os, name)

    def fails(path, *given, **options):
        if isinstance(path, int) or os.path.basename(path).startswith(".frostleaf-"):
            raise OSError(errno.ESTALE, "Stale file handle")
        return function(path, *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fails)
        with pytest.raises(OSError, match="Stale"):
            write(tmp_path / "a", "new")
    assert not os.listdir(tmp_path)


def test_what_the_disk_can_not_tell_of_does_not_count_as_removed(tmp_path, monkeypatch):
    def fails(path):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    (tmp_path / "a").touch()
    with monkeypatch.context() as patch:
        for name in ("unlink", "lstat"):
            patch.setattr(os, name, fails)
        assert not remove(str(tmp_path / "a"))
    for _ in range(2):
        assert remove(str(tmp_path / "a"))
    assert not os.listdir(tmp_path)


def test_what_can_not_be_removed_is_no_error(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(os, "unlink", refuse)
    write(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    (tmp_path / ".frostleaf-0123456789abcdef-a").touch()
    remove_temporaries(tmp_path, lambda name: name == "a")
    with pytest.raises(KeyError), atomic_write(tmp_path / "a"):
        raise KeyError


def test_a_file_that_another_process_removes_meanwhile_is_written(tmp_path, monkeypatch):
    file, copymode = tmp_path / "a", shutil.copymode
    file.write_text("old")

    def removed(source, target):
        os.unlink(source)
        copymode(source, target)

    monkeypatch.setattr(shutil, "copymode", removed)
    with atomic_write(file) as temporary, open(temporary, "w") as handle:
        handle.write("new")
    assert file.read_text() == "new"
    assert os.listdir(tmp_path) == ["a"]
