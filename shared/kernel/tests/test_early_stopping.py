"""Early stopping on losses that are written down beforehand."""

import itertools
import math

import jax.numpy as jnp
import optax
import pytest

from mosaicmd.kernel.descent import descent
from mosaicmd.kernel.early_stopping import stop_when_stale, watch
from mosaicmd.kernel.metrics import read_metrics
from mosaicmd.kernel.routines import alternate
from mosaicmd.kernel.training import train

LOSSES = [3.0, 2.0, 2.5, 2.0, 1.0, 1.5, math.nan, 1.25, 1.0, 0.5]
STALE = [0, 0, 1, 2, 0, 1, 2, 3, 4, 0]


def told():
    """A descent whose loss is the batch."""
    return descent(lambda params, batch: batch + 0.0 * params["x"], optax.sgd(0.1))


def batches(step):
    return LOSSES[(step - 1) % len(LOSSES)]


def start():
    return {"x": jnp.asarray(1.0)}


def test_stale_steps_are_counted_since_the_lowest_value(tmp_path):
    train(watch(told(), "loss"), start(), 10, batches=batches, directory=tmp_path, quiet=True)
    assert [line["stale"] for line in read_metrics(tmp_path / "metrics.jsonl")] == STALE


@pytest.mark.parametrize(("patience", "last"), [(1, 3), (2, 4), (3, 8), (4, 9)])
@pytest.mark.parametrize("resumed", [False, True])
def test_patience_survives_every_resume(tmp_path, patience, last, resumed):
    def go(folder, n_steps):
        return train(
            watch(told(), "loss"),
            start(),
            n_steps,
            batches=batches,
            callbacks=[stop_when_stale(patience)],
            directory=folder,
            quiet=True,
        )

    for n_steps in itertools.chain(range(1, 10) if resumed else (), [10, 20]):
        go(tmp_path, n_steps)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == last
    go(tmp_path / "whole", 10)
    name = f"checkpoints/step-{last:012d}.safetensors"
    assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_only_steps_with_the_metric_count():
    """`a` sees the batches of odd steps: 3, 2.5, 1, nan, 1.25, so that 2 are stale at step 9."""
    routine = watch(alternate(a=told(), b=told(), counts=(1, 1)), "a/loss")
    steps = []
    note = lambda step, state, metrics: steps.append((step, metrics["stale"]))  # noqa: E731
    stop = stop_when_stale(2)
    train(
        routine,
        start(),
        20,
        batches=lambda s: [3, 0, 2.5, 0, 1, 0, math.nan, 0, 1.25][s - 1],
        callbacks=[note, stop],
        quiet=True,
    )
    assert steps == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0), (7, 1), (8, 1), (9, 2)]


def test_a_watched_part_of_a_routine_is_found_by_its_name_and_adopts():
    """Both halve x; the part that is watched goes on from where the other left it."""
    fall = descent(lambda params, _: 0.5 * params["x"] ** 2, optax.sgd(0.5))
    routine = alternate(a=watch(fall, "loss"), b=fall)
    steps = []

    def stop(step, state, metrics):
        steps.append((step, float(state.params["x"])))
        return stop_when_stale(1, "a/stale")(step, state, metrics)

    train(routine, start(), 4, callbacks=[stop], quiet=True)
    assert steps == [(1, 0.5), (2, 0.25), (3, 0.125), (4, 0.0625)]


def test_patience_is_checked():
    with pytest.raises(ValueError, match="`patience` must be at least 1, got 0"):
        stop_when_stale(0)
