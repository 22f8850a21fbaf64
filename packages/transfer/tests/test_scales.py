"""Ratios of length and energy: from tables, and recovered from forces."""

import ase.build
import jax
import numpy as np
import pytest

from mosaicmd.gnn_models import stillinger_weber
from mosaicmd.kernel.data import Labels
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.potentials import evaluate
from mosaicmd.kernel.systems import from_ase
from mosaicmd.transfer import covalent_length_ratio, fit_scales, lattice_length_ratio

SILICON = stillinger_weber(epsilon=2.16826, sigma=2.0951, species=(14,))


def labelled(n: int, noise: float = 0.0):
    """Rattled germanium with forces of a potential that is a rescaling of silicon's."""
    potential = stillinger_weber(epsilon=1.93, sigma=2.181, species=(32,))
    params, data = potential.init(jax.random.key(0)), []
    for seed in range(n):
        atoms = ase.build.bulk("Ge", a=5.65, cubic=True)
        atoms.rattle(0.15, seed=seed)
        system = from_ase(atoms)
        graph = host_graph(system, potential.cutoff)
        forces = np.asarray(evaluate(potential.energy, params, system, graph).forces)
        forces = forces + np.random.default_rng(seed).normal(scale=noise, size=forces.shape)
        data.append((system, Labels(energy=None, forces=forces, stress=None, charges=None)))
    return data


def test_tables():
    """Cordero et al. 2008: 1.11 and 1.20 Å; lattice constants 5.43 and 5.66 Å."""
    assert covalent_length_ratio(14, 32) == pytest.approx(1.20 / 1.11)
    assert lattice_length_ratio(14, 32) == pytest.approx(5.66 / 5.43, abs=2e-3)
    with pytest.raises(ValueError, match="crystallise differently"):
        lattice_length_ratio(14, 29)
    with pytest.raises(ValueError, match="knows no lattice constant of element 1"):
        lattice_length_ratio(1, 14)
    with pytest.raises(ValueError, match="`source` 0 is no element"):
        covalent_length_ratio(0, 14)


def test_scales_of_a_rescaled_potential_are_found():
    fit = fit_scales(
        SILICON, SILICON.init(jax.random.key(0)), labelled(6), species={32: 14}, guess=1.08
    )
    assert fit.scales.length == pytest.approx(2.181 / 2.0951, abs=2e-5)
    assert fit.scales.energy == pytest.approx(1.93 / 2.16826, abs=2e-4)
    assert fit.force_rmse < 1e-3 * fit.force_rms
    assert fit.errors.min() > fit.force_rmse


def test_noise_limits_the_fit_and_is_what_remains():
    """144 components with noise of 0.05 eV/Å: its estimate is good to a tenth (2 sigma)."""
    fit = fit_scales(SILICON, SILICON.init(jax.random.key(0)), labelled(6, 0.05), species={32: 14})
    assert fit.force_rmse == pytest.approx(0.05, rel=0.13)
    assert fit.scales.length == pytest.approx(2.181 / 2.0951, abs=3e-3)


def test_bad_data_are_refused():
    params = SILICON.init(jax.random.key(0))
    data = [(system, labels._replace(forces=None)) for system, labels in labelled(1)]
    with pytest.raises(ValueError, match="`data` has no forces"):
        fit_scales(SILICON, params, data, species={32: 14})
    data = [(system, labels._replace(forces=-labels.forces)) for system, labels in labelled(1)]
    with pytest.raises(ValueError, match="point against those"):
        fit_scales(SILICON, params, data, species={32: 14})
    with pytest.raises(ValueError, match="`n_lengths` must be at least 3"):
        fit_scales(SILICON, params, data, n_lengths=2)
