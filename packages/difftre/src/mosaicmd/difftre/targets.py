"""`Target`: what was measured, how well it should be met, and the residual of a prediction."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.observables import Observable

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """A measured value of an observable.

    Attributes:
        observable: what the value belongs to.
        value: measured value(s), in the unit and shape of the observable.
        tolerance: deviation that counts as one, same unit; a number or one per component.
        weight: of this target in the loss.
        clip: deviations beyond this many tolerances count linearly instead of
            quadratically (Huber), which keeps one target that is far off from drowning
            the others; ``None``: always quadratic.

    Raises:
        ValueError: for values that are not finite, a tolerance that is not positive, or
            shapes that do not fit the bins of the observable.
    """

    observable: Observable
    value: np.ndarray | float
    tolerance: np.ndarray | float
    weight: float = 1.0
    clip: float | None = None

    def __post_init__(self) -> None:
        name, value = self.observable.name, np.asarray(self.value, float)
        bad = np.argwhere(~np.isfinite(value))
        if len(bad):
            where = f" at index {bad[0].tolist()}" if value.ndim else ""
            raise ValueError(
                f"target `{name}` is not finite{where}; remove such points or interpolate "
                "the measurement onto the bins of the observable"
            )
        if not (np.asarray(self.tolerance) > 0.0).all():
            raise ValueError(f"`tolerance` of target `{name}` must be positive")
        if not self.weight > 0.0 or (self.clip is not None and not self.clip > 0.0):
            raise ValueError(f"`weight` and `clip` of target `{name}` must be positive")
        axis = self.observable.axis
        if axis is not None and value.shape[:1] != axis.shape:
            raise ValueError(
                f"target `{name}` has shape {value.shape}, its observable has {len(axis)} bins; "
                "interpolate the measurement onto `observable.axis`"
            )
        np.broadcast_shapes(value.shape, np.shape(self.tolerance))

    def deviations(self, prediction: Array) -> Array:
        """Residuals ``sqrt(weight / size) (prediction - value) / tolerance``, flat.

        The sum of their squares is the weighted mean square deviation in tolerances.
        """
        value = jnp.asarray(self.value)
        scaled = (prediction - value) / jnp.asarray(self.tolerance)
        return jnp.ravel(scaled) * np.sqrt(self.weight / max(value.size, 1))

    def loss(self, prediction: Array) -> Array:
        """Half the sum of squared residuals, linear beyond ``clip``; shape ``[]``."""
        residual, limit = self.deviations(prediction), self._limit
        size = jnp.abs(residual)
        return jnp.sum(
            jnp.where(size <= limit, 0.5 * residual**2, limit * (size - 0.5 * limit))
            if np.isfinite(limit)
            else 0.5 * residual**2
        )

    def pull(self, prediction: Array) -> Array:
        """Derivative of :meth:`loss` in the residuals: residuals cut at ``clip``, flat."""
        return jnp.clip(self.deviations(prediction), -self._limit, self._limit)

    @property
    def _limit(self) -> float:
        size = max(np.size(self.value), 1)
        return np.inf if self.clip is None else self.clip * float(np.sqrt(self.weight / size))
