"""The titanium data of the app: complete labels that belong together."""

import importlib
import sys
from collections import Counter
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel.data import read_structures, read_systems
from mosaicmd.kernel.examples import make_examples
from mosaicmd.kernel.label_checks import check_stress
from mosaicmd.kernel.reference_energies import fit_reference_energies

APP = Path(__file__).parents[1] / "apps" / "titanium"
MEAM, PBE = (APP / "data" / f"{name}.extxyz.gz" for name in ("meam", "pbe"))


def test_labels_of_the_reference_potential_are_complete_and_belong_together():
    data = read_systems(MEAM)
    assert Counter(system.n_atoms for system, _ in data) == {36: 205, 54: 60, 32: 15}
    for _, labels in data:
        assert labels.energy is not None
        assert labels.forces is not None
        assert labels.stress is not None
        assert float(jnp.abs(labels.forces.sum(axis=0)).max()) < 1e-4
        np.testing.assert_allclose(labels.stress, np.transpose(labels.stress), atol=1e-9)
    energies, _ = fit_reference_energies(data)
    assert -4.9 < energies[22] < -4.6  # that of hcp at rest is -4.83 eV
    report = check_stress(make_examples(data, 5.5, reference_energies=energies))
    assert report.problems == (), report
    assert report.conclusive


@pytest.fixture
def generate_dft(monkeypatch):
    """The module of the app, gone again afterwards; it needs no electronic structure to import."""
    monkeypatch.syspath_prepend(str(APP))
    yield importlib.import_module("generate_dft")
    sys.modules.pop("generate_dft")


def test_structures_of_density_functional_theory_follow_from_their_numbers(generate_dft):
    found = read_structures(PBE)
    phases = Counter(str(atoms.info["phase"]) for atoms in found)
    assert len(found) >= 200
    assert set(phases) == {"hcp", "bcc", "fcc", "omega"}
    assert {1, 2, 3, 4, 8} <= {len(atoms) for atoms in found} <= {1, 2, 3, 4, 8, 16}
    numbers = [int(atoms.info["number"]) for atoms in found]
    assert numbers == sorted(set(numbers))
    for number, atoms in zip(numbers, found, strict=True):
        made, phase = generate_dft.structure(number)
        assert atoms.info["phase"] == phase
        np.testing.assert_allclose(atoms.positions, made.positions, atol=1e-8)
        np.testing.assert_allclose(atoms.cell.array, made.cell.array, atol=1e-12)


def test_labels_of_density_functional_theory_belong_together():
    data = read_systems(PBE)
    for _, labels in data:
        assert labels.energy is not None
        assert labels.forces is not None
        assert labels.stress is not None
        assert np.isfinite(labels.energy)
        assert float(np.abs(labels.forces.sum(axis=0)).max()) < 0.02
        np.testing.assert_allclose(labels.stress, np.transpose(labels.stress), atol=1e-9)
    energies, info = fit_reference_energies(data)
    assert info.rmse < 0.1
    report = check_stress(make_examples(data, 5.5, reference_energies=energies))
    assert report.problems == (), report
    assert report.conclusive
