"""`Observable`: an instantaneous value per frame, and its weighted average with an error bar."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel import statistics
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.trajectory import Trajectory

Array = jax.Array
PerFrame = Callable[[Any, System, Graph | None, Array | None], Array]
"""``(params, system, graph, momenta) -> value`` of one frame; pure and fit for ``jit``."""
Combine = Callable[[Array, Array], Array]
"""``(per-frame values [n_frames, ...], normalised weights [n_frames]) -> value``."""

JACKKNIFE_BLOCKS = 16


class Info(NamedTuple):
    """What a careful reader of an average asks next; every field has the value's shape."""

    error: Array  # standard error; nan for a single frame
    n_eff: Array  # independent, equally weighted frames: Kish's size / inefficiency
    statistical_inefficiency: Array  # frames per independent one, of the weighted series


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Observable:
    """What to compute from one frame, and how frames combine into an average.

    Attributes:
        name: key in ``Trajectory.quantities``.
        unit: of the value, for reports.
        per_frame: instantaneous value; parameters, graph and momenta may go unused.
        cutoff: radius of the neighbor list that ``per_frame`` needs, Å; ``None``: the
            graph is not used and may be ``None``.
        depends_on_params: whether the value changes with the parameters at a fixed frame,
            as the pressure does; it then has a gradient of its own under reweighting.
        axis: bin centres of a distribution, in ``axis_unit``.
        axis_unit: for example ``"Å"`` or ``"rad"``.
        combine: average of observables that are no mean over frames; ``None``: the
            weighted mean.
    """

    name: str
    unit: str
    per_frame: PerFrame
    cutoff: float | None = None
    depends_on_params: bool = False
    axis: np.ndarray | None = None
    axis_unit: str | None = None
    combine: Combine | None = None

    def __call__(self, trajectory: Trajectory, weights: Array | None = None) -> tuple[Array, Info]:
        """Average over the frames of a trajectory that has this quantity.

        Args:
            trajectory: its ``quantities[name]`` holds the per-frame values.
            weights: shape ``[n_frames]``, for example from
                :func:`mosaicmd.kernel.statistics.reweighting_weights`; ``None``: equal.

        Returns:
            The value, differentiable in ``weights``, and its `Info`.

        Raises:
            KeyError: if the trajectory lacks the quantity.
        """
        if self.name not in trajectory.quantities:
            raise KeyError(
                f"the trajectory has no quantity {self.name!r}, only "
                f"{sorted(trajectory.quantities)}; record the observable during the run, or "
                "compute it with `add_quantities([observable], params, trajectory)`"
            )
        return self.estimate(trajectory.quantities[self.name], weights)

    def estimate(self, values: Array, weights: Array | None = None) -> tuple[Array, Info]:
        """Average of per-frame ``values``, ``[n_frames, ...]``, as in :meth:`__call__`.

        Differentiable in ``values`` and ``weights``; `Info` is not.
        """
        if weights is not None:
            statistics.check_weights(values, weights)
        return _estimate(self.combine, jnp.asarray(values), weights)


@functools.partial(jax.jit, static_argnums=0)
def _estimate(combine: Combine | None, values: Array, weights: Array | None) -> tuple[Array, Info]:
    equal = jnp.ones(values.shape[0])
    normalised = statistics.normalised_weights(equal if weights is None else weights)
    fixed_values, fixed_weights = jax.lax.stop_gradient((values, normalised))
    if combine is None:
        value = statistics.weighted_mean(values, weights)
        error, inefficiency = statistics.standard_error(fixed_values, fixed_weights)
    else:
        value = combine(values, normalised)
        error = jackknife_error(combine, fixed_values, fixed_weights)
        inefficiency = jnp.ones_like(error)  # unknown: blocks absorb the correlation
    n_eff = statistics.effective_sample_size(fixed_weights) / inefficiency
    return value, Info(error, n_eff, inefficiency)


def jackknife_error(
    combine: Combine, values: Array, weights: Array, *, n_blocks: int = JACKKNIFE_BLOCKS
) -> Array:
    """Standard error of ``combine(values, weights)`` by leaving out one block at a time.

    Args:
        combine: any smooth function of values and normalised weights.
        values: shape ``[n_frames, ...]``.
        weights: shape ``[n_frames]``.
        n_blocks: contiguous blocks; at most one per frame is used.

    Returns:
        Of the shape of the combined value; nan for a single frame.

    References:
        Quenouille, Biometrika 43, 353 (1956); Tukey, Ann. Math. Stat. 29, 614 (1958).
    """
    n_frames = values.shape[0]
    n_blocks = min(n_blocks, n_frames)
    if n_blocks < 2:
        return jnp.full_like(combine(values, weights), jnp.nan)
    block = statistics.block_index(n_frames, n_blocks)

    def without(left_out: Array) -> Array:
        kept = jnp.where(block == left_out, 0.0, weights)
        return combine(values, statistics.normalised_weights(kept))

    replicas = jax.lax.map(without, jnp.arange(n_blocks, dtype=block.dtype))
    return jnp.sqrt(jnp.var(replicas, axis=0) * (n_blocks - 1))
