"""The titanium data of the app: complete labels that belong together."""

from collections import Counter
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.data import read_systems
from mosaicmd.kernel.examples import make_examples
from mosaicmd.kernel.label_checks import check_stress
from mosaicmd.kernel.reference_energies import fit_reference_energies

DATA = Path(__file__).parents[1] / "apps" / "titanium" / "data" / "meam.extxyz.gz"


def test_labels_are_complete_and_belong_together():
    data = read_systems(DATA)
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
