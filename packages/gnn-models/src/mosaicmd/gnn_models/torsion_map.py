"""Maps of two dihedrals at once, such as (phi, psi) of a residue, as periodic cubic splines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from mosaicmd.gnn_models.splines import cubic_basis
from mosaicmd.kernel.config import Config, load_config
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.observables.internal_coordinates import dihedral
from mosaicmd.kernel.potentials import Potential
from mosaicmd.kernel.systems import System

Array = jax.Array


class TorsionMapConfig(Config):
    """Settings of :func:`torsion_map`.

    ``first`` and ``second`` hold the atoms of both dihedrals of every term, counted from 0.
    All terms have one map, unless ``types`` says for every term which (0, 1, ...) it takes.
    """

    first: tuple[tuple[int, int, int, int], ...]
    second: tuple[tuple[int, int, int, int], ...]
    n_points: int = Field(default=24, ge=4)
    types: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> TorsionMapConfig:
        if not self.first or len(self.first) != len(self.second):
            raise ValueError(
                f"`first` and `second` must hold one dihedral each for every term, got "
                f"{len(self.first)} and {len(self.second)}"
            )
        for atoms in (*self.first, *self.second):
            if min(atoms) < 0 or len(set(atoms)) < 4:
                raise ValueError(f"a dihedral has four atoms counted from 0, got {list(atoms)}")
        if self.types is not None:
            if len(self.types) != len(self.first):
                raise ValueError(
                    f"`types` has {len(self.types)} entries for {len(self.first)} terms"
                )
            if set(self.types) != set(range(max(self.types) + 1)):
                raise ValueError(f"`types` must be 0, 1, ... without gaps, got {set(self.types)}")
        return self

    @property
    def n_maps(self) -> int:
        """Number of maps."""
        return 1 if self.types is None else max(self.types) + 1


def torsion_map(config: TorsionMapConfig) -> Potential:
    """Energy ``sum_kl c_kl B_k(phi) B_l(psi)`` of pairs of dihedrals, with periodic B-splines.

    The energy and two derivatives are continuous, and it is linear in the coefficients. The
    energy of a term is shared by the four atoms of each dihedral; a term with a masked atom
    has none.

    Parameters: ``{"coefficients": [n_maps, n_points, n_points], eV}``, which start at zero;
    coefficient ``(k, l)`` belongs to the B-splines that are largest at
    ``(2 pi k / n_points - pi, 2 pi l / n_points - pi)``. All coefficients of a map may have a
    constant added, which forces do not feel.

    References:
        MacKerell, Feig & Brooks, J. Comput. Chem. 25, 1400 (2004): the idea, as CMAP.
    """
    n = config.n_points
    coordinates = dihedral(config.first), dihedral(config.second)
    atoms = np.concatenate([np.array(config.first), np.array(config.second)], axis=1)
    atoms = atoms.astype(np.int32)
    types = np.zeros(len(atoms), np.int32) if config.types is None else np.array(config.types)
    largest = int(atoms.max())

    def init(key: Array) -> dict[str, Array]:
        del key
        return {"coefficients": jnp.zeros((config.n_maps, n, n))}

    def splines(angles: Array) -> tuple[Array, Array]:
        """The B-splines alive at each angle, their indices and values, ``[n_terms, 4]``."""
        along = (angles + math.pi) * (n / (2.0 * math.pi))
        cell = jnp.floor(along)
        index = cell.astype(jnp.int32)[:, None] + jnp.arange(-1, 3, dtype=jnp.int32)[None]
        return jnp.mod(index, n), cubic_basis(along - cell)

    def energy(params: dict[str, Array], system: System, graph: Graph) -> Array:
        del graph
        if largest >= system.n_atoms:
            raise ValueError(
                f"a dihedral of this 'torsion_map' names atom {largest}, but the system has "
                f"{system.n_atoms} (counted from 0); build it for this system"
            )
        (k, left), (m, right) = (splines(one.values(system)) for one in coordinates)
        rows = params["coefficients"].astype(left.dtype).reshape(-1)
        flat = (types[:, None, None] * n + k[:, :, None]) * n + m[:, None, :]
        terms = jnp.einsum("ta,tb,tab->t", left, right, rows[flat], precision="highest")
        real = jnp.all(system.mask[atoms], axis=1)
        share = jnp.where(real, terms, 0.0) / atoms.shape[1]
        empty = jnp.zeros(system.n_atoms, share.dtype)
        return empty.at[atoms.ravel()].add(jnp.repeat(share, atoms.shape[1]))

    return Potential(
        architecture="torsion_map",
        config=config.model_dump(mode="json"),
        init=init,
        energy=energy,
        cutoff=0.0,
    )


def build(config: Mapping[str, Any]) -> Potential:
    """:func:`torsion_map` from the configuration in a model file."""
    return torsion_map(load_config(TorsionMapConfig, config))
