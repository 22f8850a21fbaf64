"""Atomic writes: all or nothing, also on a full disk and after a crash."""

import builtins
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mosaicmd.kernel import files
from mosaicmd.kernel.files import (
    DiskFullError,
    atomic_write_bytes,
    atomic_write_directory,
    atomic_write_json,
    atomic_write_text,
)


class FullDisk:
    """Stands in for a file whose disk is full after the first byte."""

    def __init__(self, stream):
        self.stream = stream

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()

    def write(self, data):
        self.stream.write(data[:1])
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def full_disk(monkeypatch):
    def open_full(path, mode="r", *arguments, **keywords):
        stream = builtins.open(path, mode, *arguments, **keywords)  # noqa: SIM115
        return FullDisk(stream) if "x" in mode else stream

    monkeypatch.setattr(files, "open", open_full, raising=False)


def test_new_content_replaces_the_old_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    assert atomic_write_bytes(target, b"new") == target
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_permissions_are_those_of_an_ordinary_file(tmp_path):
    (tmp_path / "ordinary").touch()
    atomic_write_text(tmp_path / "a.txt", "x")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    atomic_write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_json_takes_numpy_values_and_refuses_nan(tmp_path):
    target = tmp_path / "a.json"
    atomic_write_json(target, {"x": np.float32(0.5), "y": np.arange(3), "ü": tmp_path})
    assert json.loads(target.read_text()) == {"x": 0.5, "y": [0, 1, 2], "ü": str(tmp_path)}
    for bad in (float("nan"), np.array([np.inf]), {1.0, 2.0}):
        with pytest.raises(ValueError, match=r"a\.json cannot be stored as JSON"):
            atomic_write_json(target, {"x": bad})
    assert json.loads(target.read_text())["x"] == 0.5


@pytest.mark.usefixtures("full_disk")
def test_full_disk_names_file_and_room_and_keeps_the_previous_one(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(DiskFullError, match=r"a\.bin needs 1000 bytes and \d+ are free") as caught:
        atomic_write_bytes(target, b"x" * 1000)
    assert "the previous one is intact" in str(caught.value)
    assert caught.value.errno == errno.ENOSPC
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.usefixtures("full_disk")
def test_full_disk_leaves_no_half_directory(tmp_path):
    with pytest.raises(DiskFullError, match=r"needs 3 bytes.*nothing was left behind"):
        atomic_write_directory(tmp_path / "model", {"a": b"xyz"})
    assert os.listdir(tmp_path) == []


def test_real_file_size_limit_is_a_full_disk(tmp_path):
    """The kernel refuses bytes beyond RLIMIT_FSIZE in the middle of a write."""
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(DiskFullError, match=r"file size limit.*needs 100000 bytes"):
            atomic_write_bytes(target, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_other_errors_stay_themselves(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic_write_bytes(tmp_path / "missing" / "a.bin", b"x")


@pytest.mark.parametrize("can_exchange", [True, False])
def test_directory_is_replaced_as_a_whole(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    target = tmp_path / "model"
    atomic_write_directory(target, {"a": b"1", "b": b"2"})
    with pytest.raises(FileExistsError, match="overwrite=True"):
        atomic_write_directory(target, {"a": b"3", "b": b"4"})
    assert (target / "a").read_bytes() == b"1"
    atomic_write_directory(target, {"a": b"3", "b": b"4"}, overwrite=True)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {"a": b"3", "b": b"4"}
    assert os.listdir(tmp_path) == ["model"]


def test_failed_second_step_brings_the_old_directory_back(tmp_path, monkeypatch):
    target = tmp_path / "model"
    atomic_write_directory(target, {"a": b"old"})
    rename, calls = os.rename, []

    def fail_once(source, destination):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "input/output error")
        rename(source, destination)

    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(OSError, match="input/output error"):
        atomic_write_directory(target, {"a": b"new"}, overwrite=True)
    assert (target / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model"]


def test_directory_with_foreign_files_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        atomic_write_directory(tmp_path, {"a": b"1"}, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(FileExistsError, match="is a file"):
        atomic_write_directory(tmp_path / "thesis.tex", {"a": b"1"}, overwrite=True)


def test_killed_writer_leaves_one_complete_content(tmp_path):
    """A process that replaces a file and a directory in a loop is killed; both stay whole."""
    program = (
        "import sys; from mosaicmd.kernel.files import atomic_write_bytes, atomic_write_directory\n"
        "for i in range(10**9):\n"
        "    data = bytes([65 + i % 26]) * 200_000\n"
        "    atomic_write_bytes(sys.argv[1] + '/file', data)\n"
        "    both = {'a': data, 'b': data}\n"
        "    atomic_write_directory(sys.argv[1] + '/model', both, overwrite=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    deadline = time.monotonic() + 20.0
    while not (tmp_path / "model").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    contents = [(tmp_path / name).read_bytes() for name in ("file", "model/a", "model/b")]
    assert all(len(data) == 200_000 and len(set(data)) == 1 for data in contents)
    assert contents[1] == contents[2]
