"""Constant pressure against closed forms of the isothermal-isobaric ensemble."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel.barostats import npt
from mosaicmd.kernel.graphs import edge_vectors, sum_edges
from mosaicmd.kernel.momenta import kinetic_tensor, maxwell_boltzmann
from mosaicmd.kernel.observables import pressure_tensor
from mosaicmd.kernel.potentials import evaluate
from mosaicmd.kernel.simulation import Simulation, split_replicas
from mosaicmd.kernel.systems import make_system, pad_system, volume
from mosaicmd.kernel.units import FEMTOSECOND, KELVIN

CELLS = ["isotropic", "orthorhombic", "flexible"]


def z_score(samples, expected):
    """How many standard errors the mean of independent samples is away from its truth."""
    samples = np.asarray(samples)
    return (samples.mean() - expected) / (samples.std(ddof=1) / np.sqrt(len(samples)))


def elastic_cell(stiffness):
    """A potential of the cell alone, ``stiffness * trace(h h^T)``, shared by the atoms."""

    def energy(params, system, graph):
        share = system.mask / jnp.sum(system.mask)
        return stiffness * jnp.sum(system.cell**2) * share

    return energy


def gas(n_atoms, edge, kT, n_replicas, seed=0):
    """Ideal atoms (and two of padding) in cells of the mean size, one key per replica."""
    masses = np.linspace(0.5, 1.5, n_atoms)
    system = pad_system(
        make_system(np.zeros((n_atoms, 3)), 1, cell=edge, masses=masses), n_atoms + 2
    )
    keys = jax.random.split(jax.random.key(seed), n_replicas)
    return system, keys


def sample_cells(integrator, energy_fn, system, keys, kT, n_samples, n_steps):
    """Cells of every replica, ``[replicas, n_samples, 3, 3]``, every ``n_steps`` steps.

    Atoms that do not interact keep the direction of their momenta in the frame of the cell,
    so these are drawn anew before every sample, which leaves the ensemble as it is.
    """

    def advance(state, _):
        state = integrator.drift(state)
        found = evaluate(energy_fn, None, state.system, None, stress=True)
        return integrator.kick(state, found), None

    def sample(state, _):
        key, sub = jax.random.split(state.key)
        state = state._replace(key=key, momenta=maxwell_boltzmann(sub, state.system, kT))
        state, _ = jax.lax.scan(advance, state, length=n_steps)
        return state, state.system.cell

    def one(key):
        draw, noise = jax.random.split(key)
        state = integrator.init(noise, system, maxwell_boltzmann(draw, system, kT), None)
        found = evaluate(energy_fn, None, system, None, stress=True)
        state = state._replace(energy=found.energy, stress=found.stress)
        return jax.lax.scan(sample, state, length=n_samples)[1]

    return np.asarray(jax.jit(jax.vmap(one))(keys))


@pytest.mark.parametrize("thermostat", ["csvr", "nose_hoover"])
def test_ideal_gas_has_the_exact_distribution_of_volumes(thermostat):
    """V ~ Gamma(N + 1, kT / P): <V> = (N + 1) kT / P, var V = (N + 1) (kT / P)^2, |z| < 4.

    The ratio of the two is the compressibility: var V / (<V> kT) = 1 / P.
    """
    n_atoms, kT, pressure = 7, 0.5, 0.1
    system, keys = gas(n_atoms, (8 * kT / pressure) ** (1 / 3), kT, 400)
    integrator = npt(
        0.05, kT, pressure, relaxation_time=1.0, barostat_time=2.0, thermostat=thermostat
    )
    cells = sample_cells(integrator, elastic_cell(0.0), system, keys, kT, 12, 200)
    volumes = np.linalg.det(cells)[:, 2:]
    mean, variance = 8 * kT / pressure, 8 * (kT / pressure) ** 2
    assert abs(z_score(volumes.mean(axis=1), mean)) < 4.0
    assert abs(z_score(((volumes - mean) ** 2).mean(axis=1), variance)) < 4.0


@pytest.mark.parametrize("cell", CELLS)
def test_elastic_cells_have_their_exact_distribution(cell):
    """Ideal atoms in a cell of energy ``a trace(h h^T)`` at P = 0, |z| < 4.

    With the measure of Martyna, Tobias & Klein (1994) ``S = h h^T`` of the flexible cell has a
    Wishart distribution of N + 1 degrees of freedom: <S_ij> = (N + 1) kT / (2 a) delta_ij,
    var S_ii = (N + 1) (kT / a)^2 / 2 and var S_ij half of that. The edges of the orthorhombic
    cell are independent, with the same moments; the square of the isotropic edge is
    Gamma(3 (N + 1) / 2, kT / (3 a)).
    """
    n_atoms, kT, stiffness = 7, 0.5, 0.1
    mean = (n_atoms + 1) * kT / (2.0 * stiffness)
    variance = 0.5 * (n_atoms + 1) * (kT / stiffness) ** 2 / (3.0 if cell == "isotropic" else 1.0)
    system, keys = gas(n_atoms, np.sqrt(mean), kT, 400, seed=1)
    integrator = npt(0.05, kT, 0.0, relaxation_time=1.0, barostat_time=2.0, cell=cell)
    cells = sample_cells(integrator, elastic_cell(stiffness), system, keys, kT, 12, 200)[:, 2:]
    metric = cells @ np.swapaxes(cells, -1, -2)
    for i, j in itertools.combinations_with_replacement(range(3), 2):
        entry = metric[..., i, j]
        if i == j:
            assert abs(z_score(entry.mean(axis=1), mean)) < 4.0
            assert abs(z_score(((entry - mean) ** 2).mean(axis=1), variance)) < 4.0
        elif cell == "flexible":
            assert abs(z_score(entry.mean(axis=1), 0.0)) < 4.0
            assert abs(z_score((entry**2).mean(axis=1), 0.5 * variance)) < 4.0
        else:
            np.testing.assert_array_equal(entry, 0.0)
