"""Distributions of (phi, psi): surfaces, divergences, populations, and their errors."""

import dataclasses
from pathlib import Path

import alanine
import numpy as np

from mosaicmd.difftre import jensen_shannon_divergence
from mosaicmd.kernel.observables.internal_coordinates import dihedral
from mosaicmd.kernel.registry import DataSetError, fetch

EDGES = np.linspace(-np.pi, np.pi, alanine.N_BINS + 1)
CENTRES = np.degrees(0.5 * (EDGES[1:] + EDGES[:-1]))
BASINS = ("beta", "PII", "right", "left")  # with helices of either hand
FEWEST = 10
"""Frames that a bin of the reference needs to have a free energy."""
N_RESAMPLED = 40
BACKBONE = dihedral(((0, 1, 2, 3), (1, 2, 3, 4)))
"""phi and psi of C, N, CA, C, N."""
OUTSIDE = "alanine_dipeptide/ala2_cgnet_5bead_train.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class Sampled:
    """Dihedrals of independent pieces of simulation, ``[n_pieces, n_frames, 2]``, rad."""

    pieces: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Frames in every bin, ``[60, 60]``."""
        return histogram(self.pieces)

    def populations(self) -> tuple[np.ndarray, np.ndarray]:
        """Share of every basin, and its standard error from the scatter between pieces."""
        shares = np.stack([basins(piece) for piece in self.pieces])
        return shares.mean(axis=0), shares.std(axis=0, ddof=1) / np.sqrt(len(shares))

    def divergence(self, reference: np.ndarray, seed: int = 0) -> tuple[float, float]:
        """From the reference's counts, nats; its error by drawing pieces anew."""
        counts = np.stack([histogram(piece) for piece in self.pieces])
        rng, n = np.random.default_rng(seed), len(counts)
        again = [
            jensen_shannon_divergence(counts[rng.integers(n, size=n)].sum(axis=0), reference)
            for _ in range(N_RESAMPLED)
        ]
        value = jensen_shannon_divergence(counts.sum(axis=0), reference)
        return value, float(np.std(again, ddof=1))


def histogram(angles: np.ndarray) -> np.ndarray:
    """Frames in every bin of the 60 x 60 grid, of angles ``[..., 2]`` in rad."""
    flat = angles.reshape(-1, 2)
    return np.histogram2d(flat[:, 0], flat[:, 1], bins=(EDGES, EDGES))[0]


def basins(angles: np.ndarray) -> np.ndarray:
    """Share of the frames in each of the basins, ``[4]``."""
    phi, psi = np.degrees(angles.reshape(-1, 2)).T
    helix = (psi > -120.0) & (psi < 50.0)
    inside = [
        (phi < -100.0) & ~helix,
        (phi >= -100.0) & (phi < 0.0) & ~helix,
        (phi < 0.0) & helix,
        phi >= 0.0,
    ]
    return np.array([np.mean(one) for one in inside])


def surface(counts: np.ndarray, kT: float) -> np.ndarray:
    """Free energy, eV, zero at its minimum, nan where there are no frames."""
    with np.errstate(divide="ignore"):
        found = -kT * np.log(counts / counts.sum())
    found[counts == 0] = np.nan
    return found - np.nanmin(found)


def surface_error(counts: np.ndarray, reference: np.ndarray, kT: float) -> float:
    """Root mean square difference of two surfaces, eV, weighted by the reference.

    Over the bins in which the reference has ten frames or more; where there are none to
    compare with, half a frame is taken. Both have the same weighted mean.
    """
    known = reference >= FEWEST
    weight = reference[known] / reference[known].sum()
    mine = np.maximum(counts[known], 0.5) / counts.sum()
    difference = -kT * np.log(mine * reference.sum() / reference[known])
    difference -= weight @ difference
    return float(np.sqrt(weight @ difference**2))


def outside() -> np.ndarray | None:
    """Dihedrals of another group's frames, rad, ``[8000, 2]``; ``None`` without the file.

    References:
        Wang et al., ACS Cent. Sci. 5, 755 (2019): five beads of the backbone, the same force
        fields, ten picoseconds apart.
    """
    try:
        path: Path = fetch(OUTSIDE)
    except DataSetError:
        return None
    with np.load(path) as data:
        return alanine.values_of({"torsions": BACKBONE}, data["coordinates"])["torsions"]
