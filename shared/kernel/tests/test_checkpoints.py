"""Checkpoints: exact restoration, fall-back from damage, and a full disk that costs nothing."""

import builtins
import errno
import os
import resource
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mosaicmd.kernel import files
from mosaicmd.kernel.checkpoints import Checkpointer, CheckpointError
from mosaicmd.kernel.files import DiskFullError


class State(NamedTuple):
    position: jax.Array
    key: jax.Array
    opt: object
    host: np.ndarray
    count: int


def make_state(seed):
    position = jax.random.normal(jax.random.key(seed), (5, 3))
    opt = optax.adam(0.1).init({"w": jnp.ones(3, jnp.float32)})
    return State(position.at[0, 0].set(-0.0), jax.random.key(seed), opt, np.arange(seed), seed)


def template():
    return make_state(3)._replace(host=np.zeros(3, int))


def bits(state):
    data = state._replace(key=jax.random.key_data(state.key))
    return [(np.asarray(leaf).dtype, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(data)]


@pytest.fixture
def checkpointer(tmp_path):
    return Checkpointer(tmp_path / "checkpoints")


def save(checkpointer, *steps):
    for step in steps:
        checkpointer.save(step, make_state(3)._replace(count=step), {"step": step})


def restore_with_warnings(checkpointer):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        restored = checkpointer.restore(template())
    return restored, [str(warning.message) for warning in caught]


def test_nothing_saved_restores_nothing(checkpointer):
    assert checkpointer.restore(template()) is None
    assert not os.path.exists(checkpointer.directory)


def test_state_and_metadata_come_back_exactly(checkpointer):
    state = make_state(3)
    checkpointer.save(10, state, {"loss": 0.1, "worst": float("inf"), "name": "ü"})
    step, restored, metadata = checkpointer.restore(template())
    assert (step, metadata) == (10, {"loss": 0.1, "worst": float("inf"), "name": "ü"})
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert bits(restored) == bits(state)
    assert (type(restored.count), type(restored.host)) == (int, np.ndarray)
    np.testing.assert_array_equal(jax.random.normal(restored.key), jax.random.normal(state.key))


def test_an_interrupted_run_ends_where_the_whole_one_does(checkpointer):
    """A random walk of 20 steps, and one that is taken up again at step 12."""

    def walk(state, start, stop):
        for step in range(start, stop):
            key, sub = jax.random.split(state.key)
            position = state.position + jax.random.normal(sub, state.position.shape)
            state = state._replace(position=position, key=key, count=step + 1)
            if state.count == 12:
                checkpointer.save(12, state)
        return state

    whole = walk(make_state(3), 0, 20)
    step, state, _ = checkpointer.restore(template())
    assert bits(walk(state, step, 20)) == bits(whole)


def test_the_newest_are_kept(checkpointer):
    save(checkpointer, 1, 5, 9)
    assert checkpointer.steps() == [5, 9]
    assert checkpointer.restore(template()).step == 9
    save(checkpointer, 9)
    assert checkpointer.steps() == [5, 9]


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "swap header", "other step"])
def test_damage_falls_back_to_the_previous_and_says_so(checkpointer, damage):
    save(checkpointer, 100, 200)
    newest = checkpointer.path(200)
    data = bytearray(newest.read_bytes())
    if damage == "truncate":
        data = data[:-10]
    elif damage == "empty":
        data = b""
    elif damage == "flip":
        data[-3] ^= 16
    elif damage == "swap header":
        data = data.replace(b"position", b"positiom")
    else:
        data = checkpointer.path(100).read_bytes()
    newest.write_bytes(data)
    restored, messages = restore_with_warnings(checkpointer)
    assert (restored.step, restored.metadata) == (100, {"step": 100})
    assert bits(restored.state) == bits(make_state(3)._replace(count=100))
    assert len(messages) == 1
    assert str(newest) in messages[0]
    assert "step 200" in messages[0]
    # The run goes on from there; the damaged file neither blocks it nor is lost.
    save(checkpointer, 150)
    assert checkpointer.steps() == [100, 150]
    assert newest.with_suffix(".damaged").exists()


def test_every_flipped_bit_is_noticed(checkpointer):
    save(checkpointer, 1)
    whole = checkpointer.path(1).read_bytes()
    for position in range(0, len(whole), 41):
        changed = bytearray(whole)
        changed[position] ^= 4
        checkpointer.path(1).write_bytes(changed)
        with (
            pytest.warns(UserWarning, match="damaged"),
            pytest.raises(CheckpointError, match="every checkpoint"),
        ):
            checkpointer.restore(template())


def test_another_kind_of_state_is_an_error_and_not_damage(checkpointer):
    save(checkpointer, 1, 2)
    other = template()._replace(position=jnp.zeros((6, 3)))
    with pytest.raises(
        CheckpointError, match=r"position is float64\[5,3\], expected float64\[6,3\]"
    ):
        checkpointer.restore(other)
    assert checkpointer.steps() == [1, 2]


def test_a_run_that_starts_anew_over_a_later_one_is_refused(checkpointer):
    save(checkpointer, 1000)
    with pytest.raises(CheckpointError, match="step 1000, later than step 10"):
        save(checkpointer, 10)
    assert checkpointer.steps() == [1000]


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="`keep` must be at least 1"):
        Checkpointer(tmp_path, keep=0)


def test_leftovers_of_a_killed_save_are_ignored_and_removed(checkpointer):
    save(checkpointer, 1)
    leftover = checkpointer.path(2).with_name(".step-000000000002.safetensors.ab12cd34.tmp")
    leftover.write_bytes(b"half")
    assert checkpointer.restore(template()).step == 1
    save(checkpointer, 3)
    assert not leftover.exists()


def full_disk(monkeypatch):
    """Every new file takes 100 bytes, then the disk is full."""

    class Full:
        def __init__(self, path):
            self.stream = builtins.open(path, "xb")  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.stream.close()

        def write(self, data):
            self.stream.write(data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "open", lambda path, mode: Full(path), raising=False)


def test_full_disk_is_one_clear_error_and_loses_nothing(checkpointer, monkeypatch):
    save(checkpointer, 1, 2)
    before = {step: checkpointer.path(step).read_bytes() for step in (1, 2)}
    with monkeypatch.context() as patch:
        full_disk(patch)
        with pytest.raises(DiskFullError, match=r"disk full: writing .*step-000000000003.* needs"):
            save(checkpointer, 3)
    assert {step: checkpointer.path(step).read_bytes() for step in (1, 2)} == before
    assert sorted(os.listdir(checkpointer.directory)) == [
        p.name for p in map(checkpointer.path, (1, 2))
    ]
    save(checkpointer, 3)
    assert checkpointer.restore(template()).step == 3


def test_real_size_limit_loses_nothing(checkpointer):
    save(checkpointer, 1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limit[1]))
    try:
        with pytest.raises(DiskFullError, match="file size limit"):
            save(checkpointer, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert checkpointer.steps() == [1]
    assert checkpointer.restore(template()).step == 1
