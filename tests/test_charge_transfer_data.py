"""The labelled clusters of the charge-transfer app: complete, and as the record says."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import ase.io
import numpy as np

from mosaicmd.kernel.data import read_systems

DATA = Path(__file__).parents[1] / "apps" / "charge-transfer" / "data"


def frames_of(file: str) -> list[Any]:
    return list(ase.io.iread(DATA / file, ":"))


def test_labels_are_complete_and_charges_add_up_to_the_net_charge():
    record = json.loads((DATA / "record.json").read_text())
    for file in sorted({entry["file"] for entry in record.values()}):
        frames = frames_of(file)
        counts = Counter(atoms.info["set"] for atoms in frames)
        expected = {
            name: entry["structures"] for name, entry in record.items() if entry["file"] == file
        }
        assert counts == expected
        assert len({(atoms.info["set"], atoms.info["number"]) for atoms in frames}) == len(frames)
        nets = []
        for system, labels in read_systems(DATA / file):
            assert system.total_charge is not None
            assert labels.energy is not None
            assert labels.charges is not None
            assert labels.forces is not None
            net = float(system.total_charge)
            assert net in (-1.0, 0.0, 1.0)
            np.testing.assert_allclose(np.sum(labels.charges), net, atol=1e-6)
            nets.append(np.sum(labels.forces, axis=0))
        # no net force, but for what the integration grid leaves: 0.033 eV/Å for salt (rms)
        assert np.sqrt(np.mean(np.square(nets))) < 0.04
        assert np.abs(nets).max() < 0.2


def test_the_same_surroundings_have_other_energies_and_charges_with_another_net_charge():
    """Ag3- lies about 8 eV below Ag3+, and its end atoms hold more than a third of its charge."""
    frames = frames_of("ag3.extxyz.gz")
    energies = {net: [] for net in (1, -1)}
    for atoms in frames:
        energies[atoms.info["total_charge"]].append(atoms.get_potential_energy())
    gap = np.mean(energies[1]) - np.mean(energies[-1])
    assert 7.0 < gap < 10.0
    ends = [atoms.get_charges()[1:].mean() for atoms in frames if atoms.info["total_charge"] < 0]
    assert np.mean(ends) < -1.0 / 3.0
