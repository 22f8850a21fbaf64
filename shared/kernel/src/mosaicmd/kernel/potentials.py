"""Potentials as functions, their sum, and energy, forces and stress from one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.config import suggest
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.systems import System, strained, volume

Array = jax.Array
Params = Any
EnergyFn = Callable[[Params, System, Graph], Array]
"""``(params, system, graph) -> [n_atoms]``: per-atom energies, eV, zero for masked atoms."""
ChargesFn = Callable[[Params, System, Graph], Array]
"""``(params, system, graph) -> [n_atoms]``: charges, e, zero for masked atoms."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Potential:
    """An energy function and what a model file needs to rebuild it.

    ``species`` lists the labels that the potential knows; ``None`` means any. ``charges``
    predicts charges, for potentials that do; calculators and evaluations report them.
    """

    architecture: str
    config: Mapping[str, Any]
    init: Callable[[Array], Params]
    energy: EnergyFn
    cutoff: float
    species: tuple[int, ...] | None = None
    charges: ChargesFn | None = None

    def check(self, system: System) -> None:
        """Raise a ``ValueError`` naming the species that this potential does not know."""
        if self.species is None:
            return
        found = set(np.unique(np.asarray(system.species)[np.asarray(system.mask)]).tolist())
        if unknown := sorted(found - set(self.species)):
            raise ValueError(
                f"`species` {unknown} of the system are unknown to this {self.architecture!r} "
                f"potential, which was made for {list(self.species)}; relabel the system or "
                "build the potential with these species"
            )


class Evaluation(NamedTuple):
    """What :func:`evaluate` returns."""

    energy: Array  # [], eV; float64 if JAX has it enabled
    forces: Array  # [n_atoms, 3], eV/Å
    stress: Array | None  # [3, 3], eV/Å³, tension positive


def total_energy(energy_fn: EnergyFn, params: Params, system: System, graph: Graph) -> Array:
    """Sum of the per-atom energies, eV, accumulated in the widest float JAX has enabled."""
    return jnp.sum(energy_fn(params, system, graph), dtype=jax.dtypes.canonicalize_dtype(float))


def evaluate(
    energy_fn: EnergyFn, params: Params, system: System, graph: Graph, *, stress: bool = False
) -> Evaluation:
    """Energy, forces and, on request, stress from one derivative.

    The stress is ``dE/d(strain) / V`` with the symmetrised strain of
    :func:`mosaicmd.kernel.systems.strained`; the pressure is ``-trace(stress) / 3``
    plus the kinetic part.

    Args:
        energy_fn: per-atom energy function.
        params: its parameters.
        system: one structure; periodic in three directions if ``stress`` is asked for.
        graph: neighbors within at least the cutoff of the potential.
        stress: also differentiate in the strain.
    """
    if not stress:

        def of_positions(positions: Array) -> Array:
            return total_energy(energy_fn, params, system._replace(positions=positions), graph)

        energy, gradient = jax.value_and_grad(of_positions)(system.positions)
        return Evaluation(energy, -gradient, None)

    def of_positions_and_strain(positions: Array, strain: Array) -> Array:
        moved = strained(system._replace(positions=positions), strain)
        return total_energy(energy_fn, params, moved, graph)

    strain = jnp.zeros((3, 3), system.positions.dtype)
    energy, (gradient, virial) = jax.value_and_grad(of_positions_and_strain, argnums=(0, 1))(
        system.positions, strain
    )
    return Evaluation(energy, -gradient, virial / volume(system))


def sum_potentials(*terms: Potential) -> Potential:
    """The sum of several terms; its parameters are a tuple with those of each term.

    Its charges are those of the term that predicts them.

    Raises:
        ValueError: if no term is given, no species is common to all of them, or more than
            one predicts charges.
    """
    if not terms:
        raise ValueError("`sum_potentials` needs at least one term")
    known = [set(term.species) for term in terms if term.species is not None]
    species = tuple(sorted(set.intersection(*known))) if known else None
    if species == ():
        raise ValueError(f"no species is common to all terms: {[term.species for term in terms]}")

    def init(key: Array) -> Params:
        keys = jax.random.split(key, len(terms))
        return tuple(term.init(sub) for term, sub in zip(terms, keys, strict=True))

    def energy(params: Params, system: System, graph: Graph) -> Array:
        parts = [t.energy(p, system, graph) for t, p in zip(terms, params, strict=True)]
        return sum(parts[1:], start=parts[0])

    charged = [index for index, term in enumerate(terms) if term.charges is not None]
    if len(charged) > 1:
        raise ValueError(
            f"terms {charged} all predict charges, so those of the sum are not defined; keep them "
            "in one, by `dataclasses.replace(term, charges=None)` of the others"
        )

    def charges(params: Params, system: System, graph: Graph) -> Array:
        (index,) = charged
        predict: Any = terms[index].charges
        return predict(params[index], system, graph)

    config = {
        "terms": [
            {"architecture": term.architecture, "config": dict(term.config)} for term in terms
        ]
    }
    return Potential(
        architecture="sum",
        config=config,
        init=init,
        energy=energy,
        cutoff=max(term.cutoff for term in terms),
        species=species,
        charges=charges if charged else None,
    )


def build_potential(
    architecture: str,
    config: Mapping[str, Any],
    *,
    architectures: Mapping[str, Callable[[Mapping[str, Any]], Potential]] | None = None,
) -> Potential:
    """A potential from its name and configuration, as a model file records them.

    Names are looked up in ``architectures`` and then among the installed entry points of
    the group ``mosaicmd.potentials``; nothing else is ever imported.

    Raises:
        ValueError: for a name that no installed package provides.
    """
    if architecture == "sum":
        terms = [
            build_potential(term["architecture"], term["config"], architectures=architectures)
            for term in config["terms"]
        ]
        return sum_potentials(*terms)
    if architectures and architecture in architectures:
        return architectures[architecture](config)
    installed = {entry.name: entry for entry in entry_points(group="mosaicmd.potentials")}
    if architecture not in installed:
        names = sorted({*installed, *(architectures or ()), "sum"})
        raise ValueError(
            f"architecture {architecture!r} is not provided by any installed package"
            f"{suggest(architecture, names)}; known: {names}"
        )
    return installed[architecture].load()(config)
