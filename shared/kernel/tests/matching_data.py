"""A pair potential with two parameters, and structures labelled by it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.data import Labels
from mosaicmd.kernel.graphs import edge_components, host_graph, pad_graph, sum_edges
from mosaicmd.kernel.potentials import Potential, evaluate
from mosaicmd.kernel.systems import pad_system
from mosaicmd.kernel.testing import random_system

CUTOFF = 4.5
TRUE = {"epsilon": 0.4, "sigma": 2.2}  # eV, Å
START = {"epsilon": 0.3, "sigma": 2.3}


def energy(params, system, graph):
    """Lennard-Jones times a smooth cutoff."""
    x, y, z = edge_components(system, graph)
    distance = jnp.sqrt(x * x + y * y + z * z)
    inside = distance < CUTOFF
    distance = jnp.where(inside, distance, CUTOFF)
    epsilon, sigma = (params[name].astype(distance.dtype) for name in ("epsilon", "sigma"))
    sixth = (sigma / distance) ** 6
    values = 2.0 * epsilon * sixth * (sixth - 1.0) * (1.0 - (distance / CUTOFF) ** 2) ** 3
    return sum_edges(jnp.where(inside, values, 0.0), graph, system.n_atoms)


def params_of(values, dtype=None):
    return {name: jnp.asarray(value, dtype) for name, value in values.items()}


PAIR = Potential(
    architecture="pair",
    config={},
    init=lambda key: params_of(START),
    energy=energy,
    cutoff=CUTOFF,
)


@functools.cache
def labelled(n=12, seed=0):
    """Random cells of 6 to 15 atoms with energy, forces and stress of the true parameters."""
    program = jax.jit(functools.partial(evaluate, energy, stress=True))
    data = []
    for index in range(n):
        n_atoms = 6 + 3 * (index % 4)
        system = random_system(1000 * seed + index, n_atoms=n_atoms, min_distance=2.0)
        graph = pad_graph(host_graph(system, CUTOFF), 1024, n_atoms=15)
        result = program(params_of(TRUE), pad_system(system, 15), graph)
        labels = Labels(
            energy=float(result.energy),
            forces=np.asarray(result.forces)[:n_atoms],
            stress=np.asarray(result.stress),
        )
        data.append((system, labels))
    return tuple(data)
