"""Functions that take a pair energy smoothly to zero at the cutoff."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def polynomial_switch(distances: Array, onset: float, cutoff: float) -> Array:
    """One below ``onset``, zero beyond ``cutoff``, twice continuously differentiable.

    In between ``1 - 10 x^3 + 15 x^4 - 6 x^5`` with ``x = (r - onset) / (cutoff - onset)``,
    the polynomial of least degree whose first two derivatives vanish at both ends.

    Args:
        distances: Å, any shape and floating-point type.
        onset: where the switch starts, Å, below ``cutoff``.
        cutoff: where it ends, Å.

    Raises:
        ValueError: if ``onset`` is not in ``[0, cutoff)``.
    """
    if not 0.0 <= onset < cutoff:
        raise ValueError(f"`onset` {onset} Å must lie in [0, cutoff={cutoff} Å)")
    x = jnp.clip((distances - onset) / (cutoff - onset), 0.0, 1.0)
    return 1.0 - x**3 * (10.0 - x * (15.0 - 6.0 * x))
