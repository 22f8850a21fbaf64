"""Measured values that come with the package, and their interpolation onto bins."""

from __future__ import annotations

import dataclasses
from importlib.resources import files

import numpy as np

from mosaicmd.kernel.config import suggest
from mosaicmd.kernel.tables import read_table

_COLUMNS = {"water_oo_rdf": ("r_A", "g"), "water_ooo_adf": ("theta_rad", "pdf")}


@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
    """A measured curve."""

    axis: np.ndarray  # ascending; Å or rad
    value: np.ndarray
    source: str

    def at(self, points: np.ndarray) -> np.ndarray:
        """Linear interpolation at ``points``.

        Raises:
            ValueError: if a point lies outside the measured range.
        """
        low, high = self.axis[0], self.axis[-1]
        if points.min() < low or points.max() > high:
            raise ValueError(
                f"points from {points.min():.4g} to {points.max():.4g} leave the measured range "
                f"[{low:.4g}, {high:.4g}]; choose bins inside it"
            )
        return np.interp(points, self.axis, self.value)


def load_measurement(name: str) -> Measurement:
    """A measurement of this package: ``water_oo_rdf`` or ``water_ooo_adf``.

    Raises:
        ValueError: for another name.
    """
    if name not in _COLUMNS:
        raise ValueError(
            f"no measurement {name!r}{suggest(name, _COLUMNS)}; there are {sorted(_COLUMNS)}"
        )
    text = (files("mosaicmd.difftre") / "measured" / f"{name}.csv").read_text(encoding="utf-8")
    table, (axis, value) = read_table(text), _COLUMNS[name]
    return Measurement(table[axis], table[value], table.source)
