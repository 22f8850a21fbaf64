"""Argon by the Lennard-Jones potential of ASE, and counts of how often it is compiled."""

import jax.numpy as jnp

from mosaicmd.kernel.graphs import edge_components, sum_edges
from mosaicmd.kernel.potentials import Potential

ARGON = {"epsilon": 0.0103, "sigma": 3.4}  # eV, Å
CUTOFF = 8.0


def lennard_jones(cutoff=CUTOFF, species=(18,), smooth=False):
    """Truncated and shifted, as ASE does by default; or ending smoothly. Counts its traces."""
    traces = []

    def energy(params, system, graph):
        traces.append(system.n_atoms)
        x, y, z = edge_components(system, graph)
        distance = jnp.sqrt(x * x + y * y + z * z)
        inside = distance < cutoff
        distance = jnp.where(inside, distance, cutoff)
        epsilon, sigma = (params[name].astype(distance.dtype) for name in ("epsilon", "sigma"))

        def pair(r):
            sixth = (sigma / r) ** 6
            return 4.0 * epsilon * sixth * (sixth - 1.0)

        if smooth:
            values = pair(distance) * (1.0 - (distance / cutoff) ** 2) ** 4
        else:
            values = pair(distance) - pair(jnp.asarray(cutoff, distance.dtype))
        return sum_edges(jnp.where(inside, 0.5 * values, 0.0), graph, system.n_atoms)

    potential = Potential(
        architecture="argon",
        config={"cutoff": cutoff, "species": list(species) if species else None, "smooth": smooth},
        init=lambda key: {name: jnp.asarray(value) for name, value in ARGON.items()},
        energy=energy,
        cutoff=cutoff,
        species=species,
    )
    return potential, traces


def build(config):
    """For `architectures` of `load_model`."""
    species = None if config["species"] is None else tuple(config["species"])
    return lennard_jones(config["cutoff"], species, config["smooth"])[0]
