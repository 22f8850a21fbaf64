"""`Observable`: an instantaneous value per frame, and its weighted average with an error bar."""

from __future__ import annotations

import dataclasses
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
        if self.combine is None:
            value = statistics.weighted_mean(values, weights)
        else:
            value = self.combine(values, _normalised(values, weights))
        fixed = jax.lax.stop_gradient((values, weights))
        return value, jax.lax.stop_gradient(self._info(*fixed))

    def _info(self, values: Array, weights: Array | None) -> Info:
        normalised = _normalised(values, weights)
        kish = statistics.effective_sample_size(normalised)
        if self.combine is None:
            error, inefficiency = statistics.standard_error(values, weights)
        else:
            error = jackknife_error(self.combine, values, normalised)
            inefficiency = jnp.ones_like(error)  # unknown: blocks absorb the correlation
        return Info(error, kish / inefficiency, inefficiency)


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


def _normalised(values: Array, weights: Array | None) -> Array:
    n_frames = values.shape[0]
    return statistics.normalised_weights(jnp.ones(n_frames) if weights is None else weights)
