"""`mosaicmd train` on charges, forces and energies of structures with net charges."""

import ase.io
import jax
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from mosaicmd.kernel.cli.training_config import load_training_config
from mosaicmd.kernel.cli.training_run import run_training
from mosaicmd.kernel.deploy import ase_calculator
from mosaicmd.kernel.potentials import evaluate
from mosaicmd.kernel.systems import from_ase
from mosaicmd.qeq_longrange import ChargeEquilibrationConfig, DirectPlan, charge_equilibration

TEACHER = charge_equilibration(
    ChargeEquilibrationConfig(
        plan=DirectPlan(),
        species=(1, 8),
        electronegativity=(4.5, 6.0),
        hardness=(6.0, 9.0),
        widths=(0.5, 0.7),
    )
).potential
NETWORK = {"species": [1, 8], "cutoff": 3.0, "n_features": 8, "n_layers": 2, "n_radial": 4}
CELLI = {
    "network": {"architecture": "painn", "config": NETWORK},
    "plan": {"method": "direct"},
    "electronegativity": [5.0, 5.0],
    "network_scale": 0.01,
}
FUNCTIONS = {"species": [1, 8], "cutoff": 3.0, "n_radial": 4, "zetas": [1]}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Molecules of three and four atoms with charges from -1 to 1, by charge equilibration."""
    path = tmp_path_factory.mktemp("data") / "ions.extxyz"
    rng, frames = np.random.default_rng(0), []
    params = TEACHER.init(jax.random.key(0))
    label = jax.jit(
        lambda s: (evaluate(TEACHER.energy, params, s, None), TEACHER.charges(params, s, None))
    )
    for k in range(24):
        symbols = ("OHH", "OHHO")[k % 2]
        places = np.array([[0.0, 0, 0], [0.9, 0.3, 0], [-0.9, 0.3, 0], [0, 1.5, 0.8]])
        atoms = Atoms(symbols, places[: len(symbols)] + rng.normal(0, 0.1, (len(symbols), 3)))
        atoms.info["total_charge"] = float((-1, 0, 1)[k % 3])
        result, charges = label(from_ase(atoms))
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=float(result.energy),
            forces=np.asarray(result.forces),
            charges=np.asarray(charges),
        )
        frames.append(atoms)
    ase.io.write(path, frames)
    return path


def settings(path, folder, **change):
    config = {
        "data": {"train": str(path), "validation": 0.25},
        "potential": {"architecture": "celli", "config": CELLI},
        "loss": {"energy": 10.0, "forces": 1.0, "charges": 100.0},
        "reference_energies": "none",
        "optimizer": {"learning_rate": 2e-2, "schedule": {"name": "cosine_decay"}},
        "batch_size": 6,
        "steps": 60,
        "separate": True,
        "precision": "float64",
        **change,
    }
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(config))
    return load_training_config(file)


@pytest.mark.slow
def test_celli_learns_what_equilibration_makes(labelled, tmp_path):
    """Net charges are given by the data: charges are learned to a percent of their range."""
    metrics = run_training(settings(labelled, tmp_path), tmp_path / "run", quiet=True)
    assert metrics["validation_rmse_charges"].value < 20.0  # me
    atoms = ase.io.read(labelled, "1")
    atoms.calc = ase_calculator(tmp_path / "run" / "model")
    assert abs(atoms.get_charges().sum() - atoms.info["total_charge"]) < 1e-9


@pytest.mark.slow
def test_the_fourth_generation_learns_charges_first_and_keeps_them(labelled, tmp_path):
    potential = {
        "architecture": "fourth_generation",
        "config": {
            "symmetry_functions": FUNCTIONS,
            "plan": {"method": "direct"},
            "electronegativity": [5.0, 5.0],
        },
    }
    first = settings(
        labelled, tmp_path, potential=potential, loss={"energy": 0, "forces": 0, "charges": 1.0}
    )
    charged = run_training(first, tmp_path / "charges", quiet=True)
    second = settings(
        labelled,
        tmp_path,
        potential=None,
        init_from=str(tmp_path / "charges" / "model"),
        freeze=["charges"],
        loss={"energy": 10.0, "forces": 1.0, "charges": 0},
        steps=5,
    )
    metrics = run_training(second, tmp_path / "energies", quiet=True)
    name = "validation_rmse_charges"
    assert metrics[name].value == pytest.approx(charged[name].value, rel=1e-6)
    assert metrics[name].value < 20.0  # me


def test_structures_that_see_each_other_are_not_joined(labelled, tmp_path):
    with pytest.raises(ValueError, match="separate=True"):
        run_training(
            settings(labelled, tmp_path, separate=False, steps=1), tmp_path / "run", quiet=True
        )
