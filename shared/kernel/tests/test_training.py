"""The training loop on gradient descent in a parabola, where every iterate is known."""

import subprocess
import sys
import time
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel.checkpoints import CheckpointError
from mosaicmd.kernel.metrics import read_metrics
from mosaicmd.kernel.training import Algorithm, averaged_params, tail_average, train


class State(NamedTuple):
    params: dict
    velocity: dict


def descent(rate=0.25, momentum=0.5):
    """Heavy-ball descent on x²/2, with the batch as noise on the gradient."""

    def init(params):
        return State(params, {"x": jnp.zeros_like(params["x"])})

    def step(state, batch):
        noise = 0.0 if batch is None else batch
        velocity = momentum * state.velocity["x"] - rate * (state.params["x"] + noise)
        x = state.params["x"] + velocity
        return State({"x": x}, {"x": velocity}), {"loss": float(0.5 * jnp.sum(x**2))}

    return Algorithm(init, step)


def start():
    return {"x": jnp.array([1.0, -2.0])}


def noise(step):
    return float(np.random.default_rng(step).normal())


def test_plain_descent_shrinks_geometrically():
    state = train(descent(momentum=0.0), start(), 5, quiet=True)
    np.testing.assert_allclose(state.params["x"], 0.75**5 * np.array([1.0, -2.0]), rtol=1e-14)


def test_a_resumed_run_has_the_same_bits_and_the_same_log(tmp_path):
    for name, lengths in (("whole", [9]), ("parts", [2, 5, 9])):
        for n_steps in lengths:
            state = train(
                descent(), start(), n_steps, batches=noise, directory=tmp_path / name, quiet=True
            )
        np.save(tmp_path / f"{name}.npy", state.params["x"])
    assert (tmp_path / "whole.npy").read_bytes() == (tmp_path / "parts.npy").read_bytes()
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert len(read_metrics(tmp_path / "whole" / "metrics.jsonl")) == 9


def test_steps_after_the_last_checkpoint_are_repeated_and_logged_once(tmp_path):
    train(descent(), start(), 5, batches=noise, directory=tmp_path, every=3, quiet=True)
    newest = tmp_path / "checkpoints" / "step-000000000005.safetensors"
    newest.unlink()  # as if the run had been killed in step 5
    state = train(descent(), start(), 7, batches=noise, directory=tmp_path, every=3, quiet=True)
    undisturbed = train(descent(), start(), 7, batches=noise, quiet=True)
    np.testing.assert_array_equal(state.params["x"], undisturbed.params["x"])
    steps = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == list(range(1, 8))


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import jax
jax.config.update("jax_enable_x64", True)
from test_training import descent, noise, start
from mosaicmd.kernel.training import Algorithm, train

quick = descent()
slow = Algorithm(quick.init, lambda state, batch: (time.sleep(0.02), quick.step(state, batch))[1])
train(slow, start(), 40, batches=noise, directory=sys.argv[1], quiet=True)
"""


def test_a_killed_process_goes_on_to_the_same_bytes(tmp_path):
    """SIGKILL at three moments; the last start runs through."""
    script = tmp_path / "run.py"
    tests = str(__file__).rsplit("/", 1)[0]
    script.write_text(SCRIPT.format(tests=tests))
    folder = tmp_path / "killed"
    for steps in (4, 11, 23):
        process = subprocess.Popen([sys.executable, str(script), str(folder)])
        while len(_lines(folder)) < steps:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
    subprocess.run([sys.executable, str(script), str(folder)], check=True)
    train(descent(), start(), 40, batches=noise, directory=tmp_path / "whole", quiet=True)
    for name in ("metrics.jsonl", "checkpoints/step-000000000040.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def _lines(folder):
    log = folder / "metrics.jsonl"
    return log.read_bytes().splitlines() if log.exists() else []


def test_checkpoints_of_another_algorithm_are_refused(tmp_path):
    train(descent(), start(), 2, directory=tmp_path, quiet=True)
    with pytest.raises(CheckpointError, match="another kind of run"):
        train(descent(), {"x": jnp.zeros(3)}, 4, directory=tmp_path, quiet=True)


@pytest.mark.parametrize(("n_steps", "used"), [(3, 3), (9, 4)])
def test_tail_average_is_the_mean_of_the_last_iterates(n_steps, used):
    algorithm = tail_average(descent(momentum=0.0), 4)
    state = train(algorithm, start(), n_steps, quiet=True)
    factors = 0.75 ** np.arange(n_steps - used + 1, n_steps + 1)
    expected = factors.mean() * np.array([1.0, -2.0])
    np.testing.assert_allclose(averaged_params(state)["x"], expected, rtol=1e-14)
    np.testing.assert_allclose(state.params["x"], factors[-1] * np.array([1.0, -2.0]), rtol=1e-14)


def stop_at(last, how):
    def callback(step, state, metrics):
        if step >= last and how == "raise":
            raise StopIteration
        return step >= last

    return callback


@pytest.mark.parametrize("how", ["raise", "return"])
def test_a_callback_ends_the_run_for_good(tmp_path, how):
    """Stopped in step 4, between two checkpoints; the same start, or a longer one, adds nothing."""
    told = []

    def tell(step, state, metrics):
        told.append((step, float(state.params["x"][0]), metrics["loss"] > 0.0))

    for n_steps in (2, 9, 9, 20):
        state = train(
            descent(momentum=0.0),
            start(),
            n_steps,
            callbacks=[stop_at(4, how), tell],
            directory=tmp_path,
            every=3,
            quiet=True,
        )
        assert float(state.params["x"][0]) == 0.75 ** min(n_steps, 4)
    assert told == [(step, 0.75**step, True) for step in (1, 2, 3, 4)]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4
    assert train(descent(), start(), 9, directory=tmp_path, quiet=True).params["x"][0] == 0.75**4


def test_a_run_that_is_kept_nowhere_stops_as_well():
    state = train(descent(momentum=0.0), start(), 9, callbacks=[stop_at(2, "return")], quiet=True)
    assert float(state.params["x"][0]) == 0.75**2


def test_a_callback_that_fails_leaves_its_step_to_be_repeated(tmp_path):
    told = []

    def fragile(step, state, metrics):
        told.append(step)
        if told == [1, 2, 3]:
            raise OSError("the plot could not be written")

    with pytest.raises(OSError, match="could not be written"):
        train(descent(), start(), 5, callbacks=[fragile], directory=tmp_path, quiet=True)
    train(descent(), start(), 5, callbacks=[fragile], directory=tmp_path, quiet=True)
    assert told == [1, 2, 3, 3, 4, 5]
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("show", "shown"), [("loss", "a/loss 0.5"), ("mse", ""), (None, "")])
def test_progress_shows_the_metric_of_whichever_algorithm_ran(capsys, show, shown):
    plain = Algorithm(
        lambda params: State(params, {}), lambda state, batch: (state, {"a/loss": 0.5})
    )
    train(plain, start(), 2, show=show)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("training: 2/2 (100 %)")
    assert line.endswith(shown or "left")


def test_tail_average_hands_parameters_on_to_what_it_wraps():
    algorithm = tail_average(descent(momentum=0.0), 2)
    state, _ = algorithm.step(algorithm.init(start()), None)
    state = algorithm.adopt(state, {"x": jnp.array([4.0, 8.0])})
    assert float(state.params["x"][0]) == 4.0
    state, _ = algorithm.step(state, None)
    assert float(state.params["x"][0]) == 3.0
    assert float(averaged_params(state)["x"][0]) == 0.5 * (0.75 + 3.0)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="`n_steps` must be at least 1"):
        train(descent(), start(), 0)
    with pytest.raises(ValueError, match="`window` must be at least 1"):
        tail_average(descent(), 0)
