"""Energies of single atoms: fitted, subtracted from labels, and added back as a potential."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.data import Labels
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.potentials import Potential
from mosaicmd.kernel.systems import System

Array = jax.Array


class ReferenceInfo(NamedTuple):
    """How well :func:`fit_reference_energies` is determined, and what it leaves over."""

    rank: int  # independent compositions
    n_species: int
    rmse: float  # of the energies per atom that are left, eV

    @property
    def is_unique(self) -> bool:
        """Whether the compositions fix the energy of every species."""
        return self.rank == self.n_species


def fit_reference_energies(
    data: Sequence[tuple[System, Labels]],
) -> tuple[dict[int, float], ReferenceInfo]:
    """Energies per species that explain most of the labels, by least squares in float64.

    Minimises the sum over structures of ``((E - sum_i e(species_i)) / n_atoms)²``. Where
    the compositions do not fix every species (water alone says nothing of H and O apart),
    the solution of least norm is taken, and a ``UserWarning`` says so: total energies of
    these compositions are right, those of others are not.

    Args:
        data: as :func:`mosaicmd.kernel.data.read_systems` returns; structures without an
            energy are left out.

    Returns:
        eV by species, and how well they are determined.

    Raises:
        ValueError: if no structure has an energy.
    """
    labelled = [(system, labels.energy) for system, labels in data if labels.energy is not None]
    if not labelled:
        raise ValueError("no structure has an `energy` to fit reference energies to")
    found = [np.asarray(system.species)[np.asarray(system.mask)] for system, _ in labelled]
    species = np.unique(np.concatenate(found))
    shares = np.array([(one[:, None] == species[None]).mean(axis=0) for one in found])
    per_atom = np.array(
        [energy / len(one) for one, (_, energy) in zip(found, labelled, strict=True)]
    )
    values, _, rank, _ = np.linalg.lstsq(shares, per_atom, rcond=1e-10)
    info = ReferenceInfo(
        rank=int(rank),
        n_species=len(species),
        rmse=float(np.sqrt(np.mean((shares @ values - per_atom) ** 2))),
    )
    if not info.is_unique:
        warnings.warn(
            f"{len(found)} structures hold {rank} independent compositions of the "
            f"{len(species)} species {species.tolist()}: their reference energies are the "
            "solution of least norm, and fit only these compositions; add structures of other "
            "compositions, or give energies of single atoms",
            stacklevel=2,
        )
    return dict(zip(species.tolist(), values.tolist(), strict=True)), info


def atomic_energies(energies: Mapping[int, float]) -> Potential:
    """A constant per species: what a model that was fitted to the rest lacks.

    ``sum_potentials(model, atomic_energies(energies))`` gives total energies, also from a
    model file.
    It has no parameters, so training leaves it alone, and model files keep every digit.
    Where energies per atom are large, in float32 the sum is rounded by up to 6e-8 of them.

    Args:
        energies: eV by species, as :func:`fit_reference_energies` returns.

    Raises:
        ValueError: for no species, labels below 1 and energies that are not finite.
    """
    table = {int(label): float(energy) for label, energy in sorted(energies.items())}
    if not table or min(table) < 1 or not np.isfinite(list(table.values())).all():
        raise ValueError(
            f"`energies` must be finite (eV) by positive species label, got {dict(energies)}"
        )
    labels = np.array(list(table), np.int32)

    def energy(params: Any, system: System, graph: Graph) -> Array:
        del params, graph
        values = jnp.asarray(list(table.values()), system.positions.dtype)
        index = jnp.minimum(jnp.searchsorted(labels, system.species), len(labels) - 1)
        return jnp.where(system.mask, values[index], 0.0)

    return Potential(
        architecture="atomic_energies",
        config={"energies": {str(label): value for label, value in table.items()}},
        init=lambda key: {},
        energy=energy,
        cutoff=1.0,  # sees no neighbors, but a list must have a range
        species=tuple(table),
    )


def build(config: Mapping[str, Any]) -> Potential:
    """:func:`atomic_energies` from the configuration in a model file."""
    return atomic_energies({int(label): value for label, value in config["energies"].items()})
