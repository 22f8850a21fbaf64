"""Systems, and compiled functions, that several test modules share."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.systems import make_system
from mosaicmd.qeq_longrange import (
    EwaldPlan,
    Exclusions,
    coulomb_energy,
    coulomb_matrix,
    coulomb_potentials,
)

energy = jax.jit(coulomb_energy, static_argnames="plan")
potentials = jax.jit(coulomb_potentials, static_argnames="plan")
matrix = jax.jit(coulomb_matrix, static_argnames="plan")


@jax.jit
def norms(vectors):
    return jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1))


def rows(cell):
    """A cell as settings hold it."""
    return tuple(map(tuple, np.asarray(cell, float).tolist()))


def ewald_plan(cell, splitting, reach=6.2, slab_height=None):
    """A plan converged to about ``exp(-reach²)`` in both sums."""
    return EwaldPlan(
        splitting=splitting,
        cutoff=reach / splitting,
        cell=rows(cell),
        k_max=2.0 * reach * splitting,
        slab_height=slab_height,
    )


def random_ions(cell, n_atoms, seed, net_charge=0.0):
    """Ions without order, at least 1.2 Å apart."""
    rng = np.random.default_rng(seed)
    cell = np.asarray(cell, float)
    images = np.array(list(itertools.product((-1, 0, 1), repeat=3))) @ cell
    positions = []
    while len(positions) < n_atoms:
        trial = rng.random(3) @ cell
        apart = [np.linalg.norm(trial - p + images, axis=-1).min() for p in positions]
        if min(apart, default=9.0) > 1.2:
            positions.append(trial)
    charges = rng.normal(size=n_atoms)
    charges += (net_charge - charges.sum()) / n_atoms
    return make_system(np.array(positions), 11, cell=cell, charges=charges)


def graph_for(system, plan, **settings):
    return host_graph(system, plan.cutoff, **settings)


def nist_water():
    """100 SPC/E molecules in a monoclinic cell, and the pairs within a molecule."""
    table = np.loadtxt(Path(__file__).parent / "data" / "nist_spce_monoclinic_4.txt")
    cell = 36.0 * np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, np.sqrt(0.75)]])
    species, charges = np.tile([8, 1, 1], 100), np.tile([-0.8476, 0.4238, 0.4238], 100)
    system = make_system(table.reshape(-1, 3), species, cell=cell, charges=charges)
    first = 3 * np.repeat(np.arange(100), 3)
    pairs = first[:, None] + np.tile([[0, 1], [0, 2], [1, 2]], (100, 1))
    return system, Exclusions(jnp.asarray(pairs, jnp.int32), jnp.ones(300))
