"""Twenty kills at random moments over a training and a run: the bytes of an undisturbed one."""

import random
import signal
import subprocess
import sys
import time

import pytest

N_KILLS = 20
SCRIPT = """
import sys
from pathlib import Path
import jax
import jax.numpy as jnp
import optax
jax.config.update("jax_compilation_cache_dir", sys.argv[2])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
from ase.build import bulk
from mosaicmd.gnn_models import LennardJonesConfig, lennard_jones
from mosaicmd.kernel import units
from mosaicmd.kernel.descent import descent
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.integrators import langevin
from mosaicmd.kernel.potentials import total_energy
from mosaicmd.kernel.simulation import Simulation
from mosaicmd.kernel.systems import from_ase
from mosaicmd.kernel.training import train

folder = Path(sys.argv[1])
system = from_ase(bulk("Ar", cubic=True, a=5.4) * 3)
potential = lennard_jones(LennardJonesConfig(epsilon=0.0104, sigma=3.4, cutoff=6.0))
graph = host_graph(system, 7.0)

def loss(params, batch):
    shaken = system._replace(
        positions=system.positions + 0.1 * jax.random.normal(batch, system.positions.shape)
    )
    return (total_energy(potential.energy, params, shaken, graph) / system.n_atoms + 0.08) ** 2

state = train(
    descent(loss, optax.adam(1e-4)),
    potential.init(jax.random.key(0)),
    600,
    batches=lambda step: jax.random.key(step),
    directory=folder / "training",
    every=7,
    quiet=True,
)
bath = langevin(4.0 * units.FEMTOSECOND, 1.0 / units.PICOSECOND, 120.0 * units.KELVIN)
simulation = Simulation(potential.energy, bath, cutoff=6.0, every=20, chunk_frames=5)
start = simulation.start(jax.random.key(1), state.params, system, replicas=2)
simulation.run(state.params, start, 12_000, directory=folder / "run", progress=False)
"""


def launch(folder, cache):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(cache)])


def progress(folder):
    """Checkpoints of the training and chunks of the run so far, of about 205."""
    log = folder / "training" / "metrics.jsonl"
    steps = log.read_bytes().count(b"\n") if log.exists() else 0
    return steps // 7 + len(list((folder / "run" / "frames").glob("frames-*.safetensors")))


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_twenty_kills_leave_the_bytes_of_an_undisturbed_run(tmp_path):
    assert launch(tmp_path / "alone", tmp_path / "jit").wait() == 0
    dice, killed, places = random.Random(7), tmp_path / "killed", []
    for _ in range(N_KILLS):
        process = launch(killed, tmp_path / "jit")
        target = progress(killed) + dice.randint(1, 15)
        while process.poll() is None and progress(killed) < target:
            time.sleep(0.002)
        time.sleep(dice.uniform(0.0, 0.02))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it finished before it could be killed"
        places.append((killed / "run").exists())
    assert 3 < sum(places) < N_KILLS - 3, "kills must meet the training and the run"
    assert launch(killed, tmp_path / "jit").wait() == 0
    assert contents(killed) == contents(tmp_path / "alone")
