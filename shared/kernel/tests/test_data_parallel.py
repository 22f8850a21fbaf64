"""Four devices and two processes give the gradients of one device."""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from matching_data import CUTOFF, START, energy, labelled, params_of

from mosaicmd.kernel.batches import Batches
from mosaicmd.kernel.data_parallel import batch_mesh
from mosaicmd.kernel.examples import make_examples
from mosaicmd.kernel.force_matching import force_matching
from mosaicmd.kernel.label_errors import MatchingLoss
from mosaicmd.kernel.training import train

LOSS = MatchingLoss(energy=2.0, forces=1.0, stress=50.0)


def trajectory(mesh=None, directory=None, **options):
    """Gradient of the first batch, and parameters and best loss after six steps of Adam."""
    batches = Batches(make_examples(labelled(12), CUTOFF), 6, mesh=mesh, **options)
    params = params_of(START)
    plain = force_matching(energy, LOSS, optax.sgd(1.0), mesh=mesh)
    state, metrics = plain.step(plain.init(params), batches(1))
    gradient = {name: float(params[name] - state.params[name]) for name in params}
    held_out = Batches(make_examples(labelled(5, seed=1), CUTOFF), 3, mesh=mesh, **options)
    algorithm = force_matching(
        energy, LOSS, optax.adam(1e-2), validation=held_out, validate_every=3, mesh=mesh
    )
    for n_steps in (4, 6) if directory else (6,):  # resumed once
        state = train(algorithm, params, n_steps, batches=batches, directory=directory, quiet=True)
    return {
        "devices": len(state.params["sigma"].devices()),
        "slots": int(batches(1).owner.shape[0]),
        "gradient": gradient,
        "loss": metrics["loss"],
        "params": {name: float(value) for name, value in state.params.items()},
        "best_loss": float(state.best_loss),
    }


def assert_same(found, expected):
    for name in START:
        for part in ("gradient", "params"):
            np.testing.assert_allclose(found[part][name], expected[part][name], rtol=1e-10)
    for name in ("loss", "best_loss"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-10)


HEADER = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import jax
jax.config.update("jax_enable_x64", True)
"""
FOUR_DEVICES = """
from mosaicmd.kernel.data_parallel import batch_mesh
from test_data_parallel import trajectory
results = [trajectory(batch_mesh(), sys.argv[1]), trajectory(batch_mesh(), separate=True)]
print(json.dumps(results))
"""
TWO_PROCESSES = """
from mosaicmd.kernel.data_parallel import batch_mesh, join_processes
port, process, folder = sys.argv[1:]
join_processes(f"127.0.0.1:{port}", 2, int(process))
assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 2, 1)
from test_data_parallel import trajectory
print(json.dumps(trajectory(batch_mesh(), directory=folder)))
"""


def start(script, *arguments, n_devices):
    flags = f"--xla_force_host_platform_device_count={n_devices}"
    return subprocess.Popen(
        [sys.executable, "-c", HEADER + script, *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
    )


def result(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


@functools.cache
def on_one_device():
    return trajectory()


def test_four_devices_give_the_gradients_of_one(tmp_path):
    process = start(FOUR_DEVICES, tmp_path, n_devices=4)
    expected = on_one_device()
    assert expected["devices"] == 1
    joined, separate = result(process)
    assert joined["devices"] == separate["devices"] == 4
    assert (joined["slots"], separate["slots"]) == (4, 8)  # multiples of four
    assert_same(joined, expected)
    assert_same(separate, expected)


def test_two_processes_give_the_gradients_of_one(tmp_path):
    """Connected by `jax.distributed`, each with a device and a directory of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [
        start(TWO_PROCESSES, port, process, tmp_path / str(process), n_devices=1)
        for process in range(2)
    ]
    expected = on_one_device()
    first, second = map(result, both)
    assert first["devices"] == second["devices"] == 2
    assert first == second
    assert_same(first, expected)
    name = "checkpoints/step-000000000006.safetensors"
    assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_a_mesh_of_one_device_is_no_mesh():
    mesh = batch_mesh(jax.devices()[:1])
    assert_same(trajectory(mesh), on_one_device())


@pytest.mark.parametrize("n_structures", [1, 3])
def test_devices_without_structures_add_nothing(n_structures):
    """More slots than structures: the loss is that of the structures."""
    examples = make_examples(labelled(12)[:n_structures], CUTOFF)
    losses = []
    for batches in (Batches(examples, 4), Batches(examples, 4, separate=True)):
        algorithm = force_matching(energy, LOSS, optax.sgd(1.0))
        losses.append(algorithm.step(algorithm.init(params_of(START)), batches(1))[1]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
