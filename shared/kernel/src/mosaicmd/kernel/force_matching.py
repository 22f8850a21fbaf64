"""Force matching: fit a potential to energies, forces, stresses and charges, as an `Algorithm`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from mosaicmd.kernel.batches import Batches
from mosaicmd.kernel.compilation import compiler_options
from mosaicmd.kernel.data_parallel import replicate, sum_over_devices
from mosaicmd.kernel.label_errors import (
    MatchingLoss,
    Sums,
    error_metrics,
    predict,
    sum_errors,
    weighted_loss,
)
from mosaicmd.kernel.potentials import ChargesFn, EnergyFn
from mosaicmd.kernel.slots import Batch
from mosaicmd.kernel.training import Algorithm

Array = jax.Array
Params = Any

_JOINED_TOLERANCE = 1e-3
"""Largest change of an energy, relative, when structures of a slot are moved apart."""


class ForceMatchingState(NamedTuple):
    """State of :func:`force_matching`."""

    params: Params
    optimizer: Any
    average: optax.EmaState  # of the parameters, not yet corrected for its start at zero
    best: Params  # average with the lowest validation loss, or the latest without validation
    best_loss: Array  # []
    n_steps: Array  # [], int32


def force_matching(
    energy_fn: EnergyFn,
    loss: MatchingLoss,
    optimizer: optax.GradientTransformation,
    *,
    charges_fn: ChargesFn | None = None,
    max_gradient_norm: float | None = None,
    average_decay: float = 0.99,
    validation: Batches | None = None,
    validate_every: int = 100,
    mesh: jax.sharding.Mesh | None = None,
) -> Algorithm:
    """Learn from labelled structures; the batches of ``train`` are those of `Batches`.

    The result, ``state.best``, is the exponential moving average of the parameters,
    corrected for its start; with ``validation``, that of the step with the lowest
    validation loss. To stop early::

        algorithm = watch(force_matching(..., validation=held_out), "validation/loss")
        state = train(algorithm, params, n_steps, batches=prefetch(batches),
                      callbacks=[stop_when_stale(10)])
        result = state.inner.best

    Metrics per step, of the batch before the step: ``loss``, ``gradient_norm`` (before
    clipping), and errors as :func:`mosaicmd.kernel.label_errors.error_metrics` names
    them; every ``validate_every`` steps also ``validation/loss`` and the errors of the
    average with that prefix.

    Args:
        energy_fn: per-atom energies; the reference energies of the examples are not in it.
        loss: weights of the labels.
        optimizer: any of optax, with any schedule. It is also given ``value``, ``grad`` and
            ``value_fn`` of the batch, so ``optax.lbfgs`` and
            ``optax.contrib.reduce_on_plateau`` work. Its state is the field ``optimizer``.
        charges_fn: predicts charges, if the loss uses them.
        max_gradient_norm: gradients are scaled down to this norm; ``None`` never.
        average_decay: of the moving average, per step; 0 for the latest parameters.
        validation: held-out structures.
        validate_every: steps.
        mesh: devices to spread batches over; give the same to `Batches`.

    Raises:
        ValueError: for settings out of range. From ``step``, for labels that the loss
            forgets or that the data lack, and for a potential in which the structures of a
            batch see each other or that uses the cell beyond the vectors of the edges:
            those need ``Batches(..., separate=True)``.
    """
    if not 0.0 <= average_decay < 1.0:
        raise ValueError(f"`average_decay` must lie in [0, 1), got {average_decay!r}")
    if max_gradient_norm is not None and not max_gradient_norm > 0.0:
        raise ValueError(f"`max_gradient_norm` must be positive, got {max_gradient_norm!r}")
    if validate_every < 1:
        raise ValueError(f"`validate_every` must be at least 1, got {validate_every!r}")
    if "charges" in loss.labels and charges_fn is None:
        raise ValueError("the loss uses `charges`; give `charges_fn`, which predicts them")
    extended = optax.with_extra_args_support(optimizer)
    average = optax.ema(average_decay)
    sums_and_gradient = sum_over_devices(_slots_with_gradient(energy_fn, loss, charges_fn), mesh)
    sums_only = sum_over_devices(_slots(energy_fn, loss, charges_fn), mesh)
    is_joinable: list[bool] = []

    def init(params: Params) -> ForceMatchingState:
        params = jax.tree.map(_strong, params)  # a weak type would be compiled for once more
        state = ForceMatchingState(
            params=params,
            optimizer=optimizer.init(params),
            average=cast(optax.EmaState, average.init(params)),
            best=params,
            best_loss=jnp.asarray(jnp.inf, float),
            n_steps=jnp.zeros((), jnp.int32),
        )
        return replicate(state, mesh)

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def move(
        state: ForceMatchingState, batch: Batch
    ) -> tuple[ForceMatchingState, dict[str, Array], dict[str, Sums]]:
        def value_fn(params: Params) -> Array:
            sums = sums_only(params, batch)
            return weighted_loss(loss, sums) / n_structures

        n_structures = _n_structures(batch)
        sums, gradient = sums_and_gradient(state.params, batch)
        value = weighted_loss(loss, sums) / n_structures
        gradient = jax.tree.map(lambda g: g / n_structures.astype(g.dtype), gradient)
        norm = optax.tree.norm(gradient)
        if max_gradient_norm is not None:
            clip = optax.clip_by_global_norm(max_gradient_norm)
            gradient, _ = clip.update(gradient, clip.init(state.params))
        change, optimizer_state = extended.update(
            gradient, state.optimizer, state.params, value=value, grad=gradient, value_fn=value_fn
        )
        params: Any = optax.apply_updates(state.params, change)
        smooth, averages = average.update(params, state.average)
        state = state._replace(
            params=params,
            optimizer=optimizer_state,
            average=cast(optax.EmaState, averages),
            best=smooth if validation is None else state.best,
            n_steps=state.n_steps + 1,
        )
        return state, {"loss": value, "gradient_norm": norm}, sums

    sums_of_average = jax.jit(
        lambda state, batch: sums_only(_averaged(state, average_decay), batch)
    )

    @jax.jit
    def keep_best(state: ForceMatchingState, value: Array) -> ForceMatchingState:
        better = value < state.best_loss
        best = jax.tree.map(
            lambda new, old: jnp.where(better, new, old),
            _averaged(state, average_decay),
            state.best,
        )
        return state._replace(best=best, best_loss=jnp.where(better, value, state.best_loss))

    def validate(state: ForceMatchingState) -> tuple[ForceMatchingState, dict[str, float]]:
        assert validation is not None
        totals = None
        for batch in validation.epoch():
            sums = jax.device_get(sums_of_average(state, batch))
            totals = sums if totals is None else jax.tree.map(lambda a, b: a + b, totals, sums)
        assert totals is not None
        value = float(weighted_loss(loss, totals)) / validation.n_examples
        state = keep_best(state, jnp.asarray(value, float))
        metrics = {"loss": value} | error_metrics(totals)
        return state, {f"validation/{name}": number for name, number in metrics.items()}

    def step(
        state: ForceMatchingState, batch: Batch
    ) -> tuple[ForceMatchingState, dict[str, float]]:
        loss.check(batch.labels)
        if not batch.separate and not is_joinable:
            _check_joined(energy_fn, charges_fn, state.params, batch)
            is_joinable.append(True)
        state, values, sums = move(state, batch)
        values, sums = jax.device_get((values, sums))
        metrics = {name: float(value) for name, value in values.items()} | error_metrics(sums)
        if validation is not None and int(state.n_steps) % validate_every == 0:
            state, found = validate(state)
            metrics |= found
        return state, metrics

    return Algorithm(init, step)


def evaluate_labels(
    energy_fn: EnergyFn,
    params: Params,
    batches: Batches,
    *,
    charges_fn: ChargesFn | None = None,
) -> dict[str, float]:
    """Errors of a model on all labels of a data set.

    Args:
        energy_fn: per-atom energies.
        params: its parameters.
        batches: the data; each structure is looked at once.
        charges_fn: predicts charges; without it they are left out.

    Returns:
        As :func:`mosaicmd.kernel.label_errors.error_metrics`.
    """
    first = batches(1)
    labels = [one for one in first.labels if one != "charges" or charges_fn is not None]
    loss = MatchingLoss(**dict.fromkeys(labels, 1.0))
    sums = jax.jit(
        sum_over_devices(_slots(energy_fn, loss, charges_fn), batches.mesh),
        compiler_options=compiler_options(training=False),
    )
    totals = None
    for batch in batches.epoch():
        found = jax.device_get(sums(params, batch))
        totals = found if totals is None else jax.tree.map(lambda a, b: a + b, totals, found)
    return error_metrics(cast(Mapping[str, Sums], totals))


def _slots(
    energy_fn: EnergyFn, loss: MatchingLoss, charges_fn: ChargesFn | None
) -> Callable[[Params, Batch], dict[str, Sums]]:
    """``(params, batch) -> sums`` over all slots."""

    def of_slot(params: Params, slot: Batch) -> dict[str, Sums]:
        predictions = predict(energy_fn, params, slot, loss.labels, charges_fn)
        return sum_errors(loss, predictions, slot, loss.labels)

    return lambda params, batch: _accumulate(of_slot, params, batch)


def _slots_with_gradient(
    energy_fn: EnergyFn, loss: MatchingLoss, charges_fn: ChargesFn | None
) -> Callable[[Params, Batch], tuple[dict[str, Sums], Params]]:
    """``(params, batch) -> (sums, gradient)`` of the weighted loss, over all slots."""

    def of_slot(params: Params, slot: Batch) -> tuple[Array, dict[str, Sums]]:
        predictions = predict(energy_fn, params, slot, loss.labels, charges_fn)
        sums = sum_errors(loss, predictions, slot, loss.labels)
        return weighted_loss(loss, sums), sums

    def with_gradient(params: Params, slot: Batch) -> tuple[dict[str, Sums], Params]:
        gradient, sums = jax.grad(of_slot, has_aux=True)(params, slot)
        return sums, gradient

    return lambda params, batch: _accumulate(with_gradient, params, batch)


def _accumulate(of_slot: Callable[[Params, Batch], Any], params: Params, batch: Batch) -> Any:
    """Sum of a function over slots, one after the other: memory is that of a single one.

    On accelerators slots of single structures go side by side, as each alone is too small.
    """
    if batch.owner.shape[0] == 1:
        return of_slot(params, jax.tree.map(lambda leaf: leaf[0], batch))
    if batch.separate and jax.default_backend() != "cpu":
        every = jax.vmap(of_slot, in_axes=(None, 0))(params, batch)
        return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), every)
    shapes = jax.eval_shape(of_slot, params, jax.tree.map(lambda leaf: leaf[0], batch))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(total: Any, slot: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_slot(params, slot)), None

    return jax.lax.scan(add, zeros, batch)[0]


def _strong(leaf: Any) -> Array:
    leaf = jnp.asarray(leaf)
    return leaf.astype(leaf.dtype)


def _n_structures(batch: Batch) -> Array:
    return jnp.sum(batch.n_atoms > 0).astype(float)


def _averaged(state: ForceMatchingState, decay: float) -> Params:
    """The moving average, corrected for its start at zero."""
    count = jnp.maximum(state.average.count, 1)
    return optax.tree.bias_correction(state.average.ema, decay, count)


def _check_joined(
    energy_fn: EnergyFn, charges_fn: ChargesFn | None, params: Params, batch: Batch
) -> None:
    """Raise where structures of a slot see each other, or the cell that is none."""

    @jax.jit
    def change(params: Params, batch: Batch) -> Array:
        slot = jax.tree.map(lambda leaf: leaf[0], batch)
        n_structures = slot.n_atoms.shape[0] + 1
        apart = 5.0 * jax.random.normal(jax.random.key(0), (n_structures, 3))
        moved = slot.system._replace(
            positions=slot.system.positions + apart.astype(slot.system.cell.dtype)[slot.owner],
            cell=2.0 * slot.system.cell,
        )
        edges = dataclasses.replace(slot.graph, shifts=0.5 * slot.graph.shifts)
        change = jnp.zeros(())
        for function in (energy_fn, charges_fn):
            if function is not None:
                before = function(params, slot.system, slot.graph)
                after = function(params, moved, edges)
                scale = jnp.mean(jnp.abs(before)) + 1e-6
                change = jnp.maximum(change, jnp.max(jnp.abs(after - before)) / scale)
        return change

    if float(found := change(params, batch)) > _JOINED_TOLERANCE:
        raise ValueError(
            "energies or charges of this potential change when the structures of a batch move "
            f"apart (by {float(found):.1e}, relative): it uses the cell, or all atoms at once, "
            "beyond the edges of its graph; give Batches(..., separate=True)"
        )
