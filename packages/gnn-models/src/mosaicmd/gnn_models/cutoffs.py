"""Ways to take a pair energy to zero at the cutoff."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from pydantic import Field, model_validator

from mosaicmd.kernel.config import Config, Length

Array = jax.Array


class TruncatedConfig(Config):
    """Where a pair energy ends, and how; the settings of :func:`truncated`.

    ``cutoff`` and ``onset`` (of the switch, 0.9 cutoffs by default) in Å.
    """

    cutoff: Length = Field(gt=0.0)
    truncation: Literal["plain", "energy_shift", "force_shift", "switch"] = "switch"
    onset: Length | None = None

    @model_validator(mode="after")
    def _check_onset(self) -> TruncatedConfig:
        if self.onset is not None and self.truncation != "switch":
            raise ValueError(f'`onset` has no meaning with truncation "{self.truncation}"')
        if self.onset is not None and not 0.0 <= self.onset < self.cutoff:
            raise ValueError(f"`onset` {self.onset} must lie in [0, cutoff={self.cutoff}) Å")
        return self


def truncated(
    pair_energy: Callable[[Array], Array], distances: Array, config: TruncatedConfig
) -> Array:
    """``pair_energy`` at ``distances``, truncated at the cutoff ``r_c``, and zero beyond.

    Below it, by ``truncation``,

    - ``"plain"``: ``u(r)``, which jumps at ``r_c``;
    - ``"energy_shift"``: ``u(r) - u(r_c)``, continuous;
    - ``"force_shift"``: ``u(r) - u(r_c) - (r - r_c) u'(r_c)``, with continuous forces;
    - ``"switch"``: ``u(r) S(r)`` with :func:`polynomial_switch`, with two continuous
      derivatives.

    Args:
        pair_energy: ``u``, acts on an array of distances elementwise.
        distances: Å, any shape and floating-point type.
        config: how to truncate.

    References:
        Allen & Tildesley, Computer Simulation of Liquids, 2nd ed. (2017), sec. 5.2.
    """
    cutoff = config.cutoff
    inside = distances < cutoff
    distances = jnp.where(inside, distances, cutoff)
    values = pair_energy(distances)
    end = jnp.full_like(distances, cutoff)
    if config.truncation == "energy_shift":
        values = values - pair_energy(end)
    if config.truncation == "force_shift":
        at_cutoff, slope = jax.jvp(pair_energy, (end,), (jnp.ones_like(end),))
        values = values - at_cutoff - (distances - cutoff) * slope
    if config.truncation == "switch":
        onset = 0.9 * cutoff if config.onset is None else config.onset
        values = values * polynomial_switch(distances, onset, cutoff)
    return jnp.where(inside, values, 0.0)


def polynomial_switch(distances: Array, onset: float, cutoff: float) -> Array:
    """One below ``onset``, zero beyond ``cutoff``, twice continuously differentiable.

    In between ``10 y^3 - 15 y^4 + 6 y^5`` with ``y = (cutoff - r) / (cutoff - onset)``, the
    polynomial of least degree whose first two derivatives vanish at both ends. Written in
    ``y``, it has full relative precision next to the cutoff.

    Args:
        distances: Å, any shape and floating-point type.
        onset: where the switch starts, Å, below ``cutoff``.
        cutoff: where it ends, Å.

    Raises:
        ValueError: if ``onset`` is not in ``[0, cutoff)``.
    """
    if not 0.0 <= onset < cutoff:
        raise ValueError(f"`onset` {onset} Å must lie in [0, cutoff={cutoff} Å)")
    y = jnp.clip((cutoff - distances) / (cutoff - onset), 0.0, 1.0)
    return y**3 * (10.0 - y * (15.0 - 6.0 * y))
