"""Predictions for slots of joined structures, and how far they are from the labels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mosaicmd.kernel import units
from mosaicmd.kernel.examples import LABELS
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.potentials import ChargesFn, EnergyFn, Params
from mosaicmd.kernel.slots import Batch
from mosaicmd.kernel.systems import System

Array = jax.Array

_REPORTED = {  # unit of an error in a metric, and its size
    "energy": ("mev_per_atom", 1.0e-3),
    "forces": ("mev_per_angstrom", 1.0e-3),
    "stress": ("gpa", units.GPA),
    "charges": ("e", 1.0),
}


class Term(NamedTuple):
    """One term of a `MatchingLoss`: its weight, and from where on it grows linearly."""

    weight: float
    huber: float | None = None  # in the unit of the deviation; None: squared everywhere


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchingLoss:
    """Weighted sum of mean squared (or Huber) deviations.

    Deviations are those of the energy per atom (eV), of components of the forces (eV/Å)
    and of the stress (eV/Å³), and of charges (e). A weight of 0 says that the labels are
    left out on purpose; ``None`` that there are none: training on data that have them is
    an error, so that no label is forgotten.

    Beyond ``huber``, ``d²`` continues as ``huber (2 |d| - huber)``.
    """

    energy: Term | float | None = None
    forces: Term | float | None = None
    stress: Term | float | None = None
    charges: Term | float | None = None

    def __post_init__(self) -> None:
        for label in LABELS:
            weight, huber = self.term(label)
            if not (math.isfinite(weight) and weight >= 0.0):
                raise ValueError(f"weight of `{label}` must not be negative, got {weight!r}")
            if huber is not None and not huber > 0.0:
                raise ValueError(f"`huber` of `{label}` must be positive, got {huber!r}")
        if not self.labels:
            raise ValueError("`MatchingLoss` needs a positive weight for at least one label")

    def term(self, label: str) -> Term:
        """The term of a label, with weight 0 where it has none."""
        term = getattr(self, label)
        return term if isinstance(term, Term) else Term(0.0 if term is None else term)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels with a positive weight."""
        return tuple(label for label in LABELS if self.term(label).weight > 0.0)

    def check(self, present: Sequence[str]) -> None:
        """Compare with the labels of a data set.

        Raises:
            ValueError: naming labels that are neither used nor left out on purpose, and
                labels with a weight that no structure has.
        """
        forgotten = [label for label in present if getattr(self, label) is None]
        if forgotten:
            raise ValueError(
                f"the data have labels {forgotten} that the loss does not use; give each a "
                f"weight, as in MatchingLoss({forgotten[0]}=1.0), or 0.0 to leave it out"
            )
        if absent := [label for label in self.labels if label not in present]:
            raise ValueError(
                f"the loss has weights for {absent}, but no structure has such a label; the "
                f"data have {list(present)}"
            )


class Predictions(NamedTuple):
    """What a model says about a slot; ``None`` for what was not asked for."""

    energy: Array  # [n_structures], eV
    forces: Array | None  # [n_atoms, 3], eV/Å
    stress: Array | None  # [n_structures, 3, 3], eV/Å³
    charges: Array | None  # [n_atoms], e


class Sums(NamedTuple):
    """Sums over the values of one label; they add up over slots and batches."""

    loss: Array  # [], without the weight of the term
    n_values: Array  # []
    absolute: Array  # []
    squared: Array  # []


def predict(
    energy_fn: EnergyFn,
    params: Params,
    slot: Batch,
    labels: Sequence[str],
    charges_fn: ChargesFn | None = None,
) -> Predictions:
    """Energies and whatever else ``labels`` asks for, of one slot (without leading axis).

    Forces and the stress of every structure come from one derivative of the sum of all
    energies: that structures do not see each other makes it the derivative of each.
    """
    system, graph = slot.system, slot.graph
    n_structures = slot.n_atoms.shape[0]
    dtype = system.positions.dtype

    def total(positions: Array, strain: Array | None) -> tuple[Array, Array]:
        moved, edges = system._replace(positions=positions), graph
        if strain is not None:
            moved, edges = _strained(slot, positions, strain)
        atoms = energy_fn(params, moved, edges).astype(jax.dtypes.canonicalize_dtype(float))
        energy = jax.ops.segment_sum(atoms, slot.owner, n_structures + 1, indices_are_sorted=True)[
            :n_structures
        ]
        return jnp.sum(energy), energy

    charges = None
    if "charges" in labels:
        if charges_fn is None:
            raise ValueError("the loss uses `charges`; give `charges_fn`, which predicts them")
        charges = charges_fn(params, system, graph)
    if "stress" in labels:
        strain = jnp.zeros((n_structures, 3, 3), dtype)
        (gradient, virial), energy = jax.grad(total, argnums=(0, 1), has_aux=True)(
            system.positions, strain
        )
        return Predictions(energy, -gradient, virial / slot.volume[:, None, None], charges)
    if "forces" in labels:
        gradient, energy = jax.grad(total, has_aux=True)(system.positions, None)
        return Predictions(energy, -gradient, None, charges)
    return Predictions(total(system.positions, None)[1], None, None, charges)


def sum_errors(
    loss: MatchingLoss, predictions: Predictions, slot: Batch, labels: Sequence[str]
) -> dict[str, Sums]:
    """Sums over one slot, by label."""
    targets = slot.targets
    result = {}
    for label in labels:
        predicted, wanted = getattr(predictions, label), getattr(targets, label)
        deviation, weight = predicted - wanted.astype(predicted.dtype), targets.weight(label)
        if label == "energy":
            deviation = deviation / jnp.maximum(slot.n_atoms, 1).astype(deviation.dtype)
        deviation = deviation.reshape(*weight.shape, -1)
        present = (weight > 0.0).astype(deviation.dtype)[..., None]
        deviation = jnp.where(present > 0.0, deviation, 0.0)
        squared = jnp.square(deviation)
        huber = loss.term(label).huber
        values = squared if huber is None else 2.0 * optax.huber_loss(deviation, delta=huber)
        values = jnp.mean(values, axis=-1) * weight.astype(deviation.dtype)
        result[label] = Sums(
            loss=jnp.sum(values),
            n_values=jnp.sum(present) * deviation.shape[-1],
            absolute=jnp.sum(jnp.abs(deviation)),
            squared=jnp.sum(squared),
        )
    return result


def weighted_loss(loss: MatchingLoss, sums: Mapping[str, Sums]) -> Array:
    """The loss that sums stand for, times the number of structures."""
    return sum((loss.term(label).weight * one.loss for label, one in sums.items()), jnp.zeros(()))


def error_metrics(sums: Mapping[str, Sums]) -> dict[str, float]:
    """Mean absolute and root mean square errors in customary units, by name.

    ``rmse_energy_mev_per_atom``, ``rmse_forces_mev_per_angstrom`` (of components),
    ``rmse_stress_gpa`` (of components), ``rmse_charges_e``, and the same with ``mae``;
    labels without any value are left out.
    """
    metrics = {}
    for label, one in sums.items():
        unit, size = _REPORTED[label]
        if n := float(one.n_values):
            metrics[f"mae_{label}_{unit}"] = float(one.absolute) / n / size
            metrics[f"rmse_{label}_{unit}"] = math.sqrt(float(one.squared) / n) / size
    return metrics


def _strained(slot: Batch, positions: Array, strain: Array) -> tuple[System, Graph]:
    """The slot with every structure under its own strain."""
    symmetric = 0.5 * (strain + jnp.swapaxes(strain, -1, -2))
    deformation = jnp.eye(3, dtype=strain.dtype)[None] + symmetric
    padded = jnp.concatenate([deformation, jnp.zeros_like(deformation[:1])])
    of_atoms = padded[slot.owner]
    system = slot.system._replace(positions=_rows_times(positions, of_atoms))
    if slot.separate:
        cell = jnp.matmul(slot.system.cell, deformation[0], precision="highest")
        return system._replace(cell=cell), slot.graph
    of_edges = of_atoms[slot.graph.receivers]
    shifts = _rows_times(slot.graph.shifts, of_edges)
    return system, dataclasses.replace(slot.graph, shifts=shifts)


def _rows_times(rows: Array, matrices: Array) -> Array:
    """``rows[i] @ matrices[i]``, elementwise: exact in the precision of the arrays."""
    return jnp.sum(rows[:, :, None] * matrices, axis=1)
