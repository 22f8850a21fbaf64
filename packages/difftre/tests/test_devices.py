"""State points on several devices, which a process of its own sees: the same results, elsewhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.difftre.devices import on_devices

SCRIPT = """
import json
import jax, jax.numpy as jnp, numpy as np, optax
jax.config.update("jax_enable_x64", True)
from difftre_ensembles import KT, harmonic_energy, mean_square
from mosaicmd.difftre import StatePointData, Target, difftre, dynamics_sampler, first_order
from mosaicmd.kernel.integrators import langevin
from mosaicmd.kernel.simulation import Simulation
from mosaicmd.kernel.systems import make_system
from mosaicmd.kernel.trajectory import StatePoint

places, points = {}, []
grid = 0.4 * np.stack(np.meshgrid(*[range(2)] * 3, indexing="ij"), -1).reshape(-1, 3)
system = make_system(grid, 1, masses=1.0)
simulation = Simulation(
    harmonic_energy, langevin(0.5, 0.1, KT), cutoff=1.0, every=5, min_distance=0.0
)
for k, kT in enumerate((KT, 2 * KT, 3 * KT)):
    sampler = dynamics_sampler(
        simulation, system, StatePoint(kT), n_equilibration=50, n_production=200,
        key=jax.random.key(k),
    )

    def sample(params, state, sample=sampler.sample, k=k):
        places[k] = jnp.zeros(()).devices().pop().id
        state, trajectory = sample(params, state)
        assert {d.id for d in trajectory.systems.positions.devices()} == {places[k]}
        return state, trajectory

    target = Target(observable=mean_square(), value=kT / 1.3, tolerance=0.1 * kT)
    points.append(
        StatePointData(name=str(k), sampler=sampler._replace(sample=sample), targets=[target])
    )
algorithm = difftre(harmonic_energy, None, points, first_order(optax.sgd(1e-3)))
state = algorithm.init({"k": jnp.asarray(1.0)})
for _ in range(3):
    state, metrics = algorithm.step(state)
home = {d.id for leaf in jax.tree.leaves(state.samples) for d in leaf.devices()}
print(json.dumps({"places": places, "k": float(state.params["k"]), "home": sorted(home),
                  "simulations": metrics["simulations"]}))
"""


def run(n_devices):
    flags = f"--xla_force_host_platform_device_count={n_devices}"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_state_points_are_simulated_on_devices_of_their_own():
    """Three on two devices; parameters are those of one device, and frames come home."""
    one, two = run(1), run(2)
    assert one["places"] == {"0": 0, "1": 0, "2": 0}
    assert two["places"] == {"0": 0, "1": 1, "2": 0}
    assert two["home"] == [0]
    assert two["simulations"] == one["simulations"] >= 3
    assert two["k"] == pytest.approx(one["k"], rel=1e-12)
    assert one["k"] != 1.0


def test_results_keep_the_order_of_the_items_and_errors_are_raised():
    devices = jax.local_devices() * 3  # the same one, three times: threads all the same
    found = on_devices(lambda n: jnp.full(2, n), range(7), devices)
    np.testing.assert_array_equal(found, np.repeat(np.arange(7)[:, None], 2, axis=1))

    def fail(n):
        if n in (2, 4):
            raise RuntimeError(f"item {n}")
        return jnp.zeros(())

    with pytest.raises(RuntimeError, match="item 2"):
        on_devices(fail, range(7), devices)
