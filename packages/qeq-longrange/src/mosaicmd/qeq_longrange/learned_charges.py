"""What networks learn of the charges of each species: electronegativity, hardness and width."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.config import Config, Length
from mosaicmd.kernel.potentials import Params
from mosaicmd.kernel.systems import System
from mosaicmd.qeq_longrange.coulomb import per_species

Array = jax.Array

_NAMES = ("electronegativity", "hardness", "widths")


class ChargesConfig(Config):
    """Where values of each species start: one for all, or one for each.

    ``electronegativity`` in eV/e, ``hardness`` in eV/e², ``widths`` of Gaussian charges in Å.
    """

    electronegativity: tuple[float, ...] | float = 0.0
    hardness: tuple[float, ...] | float = 5.0
    widths: tuple[Length, ...] | Length = 1.0

    def check_charges(self, n_species: int) -> None:
        """Raise a ``ValueError`` for a wrong number of values, or some that are not positive."""
        for name in _NAMES:
            given = getattr(self, name)
            values = np.atleast_1d(given)
            if isinstance(given, tuple) and len(values) != n_species:
                raise ValueError(
                    f"`{name}` has {len(values)} values for the {n_species} species; give one "
                    "for all, or one for each"
                )
            if name != "electronegativity" and not (values > 0.0).all():
                raise ValueError(f"`{name}` must be positive, got {values.tolist()}")

    def init_charges(self, n_species: int) -> dict[str, Array]:
        """Parameters ``electronegativity``, ``raw_hardness``, ``raw_widths``, one per species.

        The softplus of the last two is the hardness in eV/e² and the width in Å.
        """
        chi, hardness, widths = (
            jnp.broadcast_to(jnp.asarray(getattr(self, name), float), (n_species,))
            for name in _NAMES
        )
        return {
            "electronegativity": chi,
            "raw_hardness": inverse_softplus(hardness),
            "raw_widths": inverse_softplus(widths),
        }


def positive_parameters(
    params: Params, species: tuple[int, ...], system: System
) -> tuple[Array, Array]:
    """Hardness (eV/e²) and width (Å) of every atom, positive whatever the parameters."""
    index, dtype = per_species(species, system), system.positions.dtype
    hardness, widths = (
        jax.nn.softplus(jnp.asarray(params[name], dtype))[index]
        for name in ("raw_hardness", "raw_widths")
    )
    return hardness, widths


def inverse_softplus(values: Array) -> Array:
    """``x`` with ``log(1 + exp(x))`` equal to ``values``, which are positive."""
    return values + jnp.log(-jnp.expm1(-values))
