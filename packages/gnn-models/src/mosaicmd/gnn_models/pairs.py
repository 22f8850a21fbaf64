"""Parameters per pair of species: which pair an edge belongs to, and values from settings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.systems import System

Array = jax.Array


def species_pairs(species: Sequence[int]) -> list[tuple[int, int]]:
    """Unordered pairs of labels in the order of per-pair parameters: aa, ab, ..., bb, ..."""
    return list(combinations_with_replacement(species, 2))


def species_index(species: Sequence[int], system: System) -> Array:
    """Index into ``species`` of every atom, shape ``[n_atoms]``, int32.

    Atoms that ``species`` lacks (masked ones) get some valid index.
    """
    order = np.argsort(species)
    found = jnp.searchsorted(jnp.asarray(np.asarray(species)[order]), system.species)
    return jnp.asarray(order, jnp.int32)[jnp.minimum(found, len(species) - 1)]


def pair_index(species: Sequence[int], system: System, graph: Graph) -> Array:
    """Index into :func:`species_pairs` of every edge, shape ``[n_edges]``, int32.

    Edges of atoms that ``species`` lacks (masked ones) get some valid index.
    """
    n, kind = len(species), species_index(species, system)
    ends = kind[graph.receivers], kind[graph.senders]
    low, high = jnp.minimum(*ends), jnp.maximum(*ends)
    return low * n - low * (low - 1) // 2 + high - low


def per_pair(
    name: str, value: float | tuple[float, ...], species: Sequence[int] | None
) -> tuple[float, ...] | float:
    """A setting as one value per pair of ``species``, or one for all without them.

    Raises:
        ValueError: for a value that is not positive, or a number of values that does not
            fit the species.
    """
    values = value if isinstance(value, tuple) else (value,)
    if not all(entry > 0.0 for entry in values):
        raise ValueError(f"`{name}` must be positive, got {value}")
    if species is None:
        if isinstance(value, tuple):
            raise ValueError(f"`{name}` has one value per pair of species; give `species`")
        return value
    pairs = species_pairs(species)
    if isinstance(value, tuple) and len(value) != len(pairs):
        raise ValueError(
            f"`{name}` has {len(value)} values for {len(pairs)} pairs of species; give one for "
            f"all, or one for each of {pairs}"
        )
    return value if isinstance(value, tuple) else values * len(pairs)


def check_species(species: Sequence[int] | None) -> None:
    """Raise a ``ValueError`` for labels that repeat or are below 1."""
    if species is None:
        return
    if not species or min(species) < 1 or len(set(species)) < len(species):
        raise ValueError(
            f"`species` must be distinct positive labels, got {list(species)}; leave it out for "
            "one set of parameters"
        )
