"""Plans of a Coulomb sum: what must be known before compiling, and stays while atoms move."""

from __future__ import annotations

import functools
import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from mosaicmd.kernel.config import Config, Length

CellRows = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]

LARGEST_ORDER = 6


class DirectPlan(Config):
    """Sum over pairs in free space.

    Without a ``cutoff`` over all pairs, whatever the graph; with one over the edges of the graph
    shorter than that, which is the whole sum if the cutoff exceeds the molecule.
    """

    method: Literal["direct"] = "direct"
    cutoff: Annotated[Length, Field(gt=0.0)] | None = None

    @property
    def n_periodic(self) -> int:
        """Number of periodic directions."""
        return 0


class _SplitPlan(Config):
    """What Ewald and particle-mesh Ewald have in common.

    ``splitting`` is ``alpha`` in ``erfc(alpha r)``, 1/Å; ``cutoff`` (Å) ends the sum over
    edges. With ``slab_height`` (Å) only the first two lattice vectors are periodic, and the
    sum runs over a cell of that height along their normal, vacuum included.
    """

    splitting: float = Field(gt=0.0)
    cutoff: Length = Field(gt=0.0)
    slab_height: Annotated[Length, Field(gt=0.0)] | None = None

    @property
    def n_periodic(self) -> int:
        """Number of periodic directions."""
        return 3 if self.slab_height is None else 2


class EwaldPlan(_SplitPlan):
    """Ewald summation over the wave vectors up to ``k_max`` (1/Å) of a reference ``cell`` (Å).

    The same integer multiples of the reciprocal vectors are used in any other cell, so the
    energy stays smooth while the cell changes.
    """

    method: Literal["ewald"] = "ewald"
    cell: CellRows
    k_max: float = Field(gt=0.0)

    @model_validator(mode="after")
    def _check(self) -> EwaldPlan:
        if abs(np.linalg.det(np.array(self.cell))) < 1e-9:
            raise ValueError("`cell` must have three independent rows")
        return self

    def wave_numbers(self) -> tuple[tuple[int, int, int], np.ndarray]:
        """Largest multiples ``(l, m, n)``, and the weight of each ``[l + 1, 2 m + 1, 2 n + 1]``.

        First multiples run from 0 to ``l``, the others from ``-m`` to ``m`` and ``-n`` to
        ``n``. The weight is 2 where ``-k`` is not in this half, 1 where it is, and 0 for
        ``k = 0`` and beyond ``k_max``.
        """
        return _wave_numbers(self.cell, self.k_max)


class MeshPlan(_SplitPlan):
    """Particle-mesh Ewald with B-splines of ``order`` points per direction.

    The energy has ``order - 2`` continuous derivatives in the positions. Order 3 is enough for
    forces, 4 for second derivatives.
    """

    method: Literal["pme"] = "pme"
    mesh: tuple[int, int, int]
    order: int = Field(default=5, ge=3, le=LARGEST_ORDER)

    @model_validator(mode="after")
    def _check(self) -> MeshPlan:
        if min(self.mesh) < self.order:
            raise ValueError(
                f"`mesh` {self.mesh} must have at least `order` = {self.order} points per direction"
            )
        return self


CoulombPlan = Annotated[DirectPlan | EwaldPlan | MeshPlan, Field(discriminator="method")]
"""Any of the three; in settings told apart by ``method``."""


@functools.lru_cache(maxsize=64)
def _wave_numbers(cell: CellRows, k_max: float) -> tuple[tuple[int, int, int], np.ndarray]:
    rows = np.array(cell)
    limit = k_max * (1.0 + 1e-12)
    extent = np.linalg.norm(rows, axis=1) * limit / (2.0 * math.pi)  # |n_i| = |k . a_i| / 2 pi
    l_max, m_max, n_max = (int(x) for x in np.floor(extent))
    multiples = np.stack(
        np.meshgrid(
            np.arange(l_max + 1),
            np.arange(-m_max, m_max + 1),
            np.arange(-n_max, n_max + 1),
            indexing="ij",
        ),
        axis=-1,
    )
    k = 2.0 * math.pi * multiples @ np.linalg.inv(rows).T
    length = np.linalg.norm(k, axis=-1)
    weights = np.where((length > 0.0) & (length <= limit), 2.0, 0.0)
    weights[0] *= 0.5
    weights.setflags(write=False)
    return (l_max, m_max, n_max), weights
