"""The installed command on silicon of PBE: train, kill, resume, evaluate, simulate, export."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.build
import ase.io
import jax
import numpy as np
import pytest
import yaml

from mosaicmd.kernel.data import read_structures
from mosaicmd.kernel.deploy import ase_calculator, load_exported
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.model_files import load_model
from mosaicmd.kernel.potentials import evaluate
from mosaicmd.kernel.systems import from_ase
from mosaicmd.kernel.trajectory_files import read_trajectory

pytestmark = pytest.mark.skipif("MOSAICMD_DATA" not in os.environ, reason="MOSAICMD_DATA")
COMMAND = Path(sys.executable).with_name("mosaicmd")
SETTINGS = {
    "data": {"train": "train.extxyz", "validation": 0.2},
    "potential": [  # Stillinger & Weber (1985)
        {"architecture": "stillinger_weber_pair", "config": {"epsilon": 2.16826, "sigma": 2.0951}},
        {
            "architecture": "three_body",
            "config": {"cutoff": 3.77118, "decay_length": 2.51412, "strength": 45.5335},
        },
    ],
    "loss": {"energy": 1.0, "forces": {"weight": 1.0, "huber": 1.0}, "stress": 0},
    "optimizer": {
        "learning_rate": 0.03,
        "options": {"b2": 0.95},
        "schedule": {"name": "exponential_decay", "options": {"decay_rate": 0.1}},
    },
    "max_gradient_norm": 10.0,
    "average_decay": 0.9,
    "batch_size": 8,
    "steps": 150,
    "checkpoint_every": 5,
}
MD = ("--temperature", "300 K", "--timestep", "1 fs", "--steps", "4000", "--every", "20")


def launch(*arguments):
    return subprocess.Popen(
        [COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(*arguments):
    process = launch(*arguments)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return output


def kill_when(process, ready):
    """SIGKILL as soon as `ready()`; false if the process was faster."""
    while not ready() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("silicon")
    source = Path(os.environ["MOSAICMD_DATA"]) / "si_train.extxyz.gz"
    structures = [atoms for atoms in read_structures(source) if len(atoms) <= 64][::5]
    ase.io.write(folder / "train.extxyz", structures[:30])
    (folder / "silicon.yaml").write_text(yaml.safe_dump(SETTINGS))
    finish("train", folder / "silicon.yaml", "--out", folder / "run")
    return folder


def test_training_halves_the_errors_of_the_published_potential(trained):
    metrics = json.loads((trained / "run" / "results.json").read_text())["metrics"]
    lines = (trained / "run" / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert metrics["validation_rmse_energy"]["value"] < 0.5 * first["rmse_energy_mev_per_atom"]
    assert metrics["validation_rmse_forces"]["value"] < first["rmse_forces_mev_per_angstrom"]
    assert (trained / "run" / "report.html").read_text().count("<svg") == 4


def test_a_killed_training_resumes_to_the_same_bytes(trained, tmp_path):
    out = tmp_path / "run"
    log = out / "metrics.jsonl"
    process = launch("train", trained / "silicon.yaml", "--out", out)
    assert kill_when(process, lambda: log.exists() and log.read_bytes().count(b"\n") > 60)
    finish("train", trained / "silicon.yaml", "--out", out)
    assert contents(out) == contents(trained / "run")


def test_evaluation_on_other_data_names_its_errors(trained, tmp_path):
    data = Path(os.environ["MOSAICMD_DATA"]) / "si_test.extxyz.gz"
    output = finish("evaluate", trained / "run" / "model", data, "--out", tmp_path / "errors")
    assert "meV/atom" in output
    metrics = json.loads((tmp_path / "errors" / "results.json").read_text())["metrics"]
    assert metrics["all_rmse_energy"]["value"] < 1500.0
    assert metrics["all_rmse_stress"]["unit"] == "GPa"


def test_dynamics_resumes_after_a_kill(trained, tmp_path):
    ase.io.write(tmp_path / "silicon.cif", ase.build.bulk("Si", cubic=True) * 2)
    command = ("md", trained / "run" / "model", tmp_path / "silicon.cif", *MD, "--out")
    finish(*command, tmp_path / "alone")
    process = launch(*command, tmp_path / "killed")
    frames = tmp_path / "killed" / "run" / "frames"
    assert kill_when(process, lambda: frames.exists() and len(list(frames.glob("frames*"))) > 2)
    finish(*command, tmp_path / "killed")
    alone, killed = contents(tmp_path / "alone"), contents(tmp_path / "killed")
    assert alone.keys() == killed.keys()
    for name in alone:
        if not name.startswith("trajectory"):  # an ASE file holds the time it was made
            assert alone[name] == killed[name], name
    one, two = (read_trajectory(tmp_path / n / "trajectory.traj") for n in ("alone", "killed"))
    np.testing.assert_array_equal(one.systems.positions, two.systems.positions)
    assert one.n_frames == 200
    metrics = json.loads((tmp_path / "alone" / "results.json").read_text())["metrics"]
    temperature = metrics["temperature_kelvin"]
    assert 1.0 < temperature["error"] < 20.0
    assert abs(temperature["value"] - 300.0) < 4.0 * temperature["error"]
    assert abs(metrics["drift_of_conserved_energy"]["value"]) < 1.0  # meV/atom/ps


def test_the_exported_program_is_the_model_and_the_calculator(trained, tmp_path):
    path = tmp_path / "silicon.mosaicmd"
    model = trained / "run" / "model"
    finish("export", model, "--out", path, "--dtype", "float64")
    atoms = ase.build.bulk("Si", cubic=True) * 2
    atoms.rattle(0.1, seed=3)
    system = from_ase(atoms)
    potential, params = load_model(model, dtype="float64")
    graph = host_graph(system, potential.cutoff)
    wanted = jax.jit(lambda *args: evaluate(potential.energy, *args))(params, system, graph)
    found = load_exported(path).evaluate(system, graph)
    scale = float(np.abs(wanted.forces).max())
    np.testing.assert_allclose(found.forces, wanted.forces, atol=1e-12 * scale)
    atoms.calc = ase_calculator(model, dtype="float64")
    np.testing.assert_allclose(atoms.get_forces(), wanted.forces, atol=1e-12 * scale)
    energy = atoms.get_potential_energy()
    assert float(np.sum(found.energies)) == pytest.approx(energy, rel=1e-12)


def test_a_mistake_is_one_line(trained, tmp_path):
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(SETTINGS | {"batchsize": 4}))
    process = launch("train", tmp_path / "wrong.yaml")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("error: ")
    assert "did you mean `batch_size`?" in errors
    assert "Traceback" not in errors
