"""Choose splitting, cutoff and wave vectors or mesh from a requested accuracy, on the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import jax
import numpy as np

from mosaicmd.kernel.systems import System
from mosaicmd.kernel.units import COULOMB_CONSTANT
from mosaicmd.qeq_longrange.plans import LARGEST_ORDER, DirectPlan, EwaldPlan, MeshPlan

Array = jax.Array

_CUTOFFS = np.arange(3.0, 20.5, 0.5)  # Å, tried when none is given
_PAIR_COST, _PHASE_COST, _SPREAD_COST, _MESH_COST = 30.0, 3.0, 9.0, 15.0  # about ns on a CPU core

_SPLINE_ERRORS = {
    3: (1 / 588, 7 / 1440, 21 / 3872),
    4: (1 / 4320, 3 / 1936, 7601 / 2271360, 143 / 28800),
    5: (1 / 23232, 7601 / 13628160, 143 / 69120, 517231 / 106536960, 106640677 / 11737571328),
    6: (
        691 / 68140800,
        13 / 57600,
        47021 / 35512320,
        9694607 / 2095994880,
        733191589 / 59609088000,
        326190917 / 11700633600,
    ),
}
"""Coefficients of the error of B-spline assignment by its order (Deserno & Holm, Table I)."""


class _Charges(NamedTuple):
    """What error estimates need to know of a system."""

    strength: float  # Coulomb constant times the sum of squared charges, eV Å
    n_atoms: int
    cell: np.ndarray  # [3, 3], Å
    widest: float  # standard deviation of the widest Gaussian charge, Å

    @property
    def volume(self) -> float:
        return abs(float(np.linalg.det(self.cell)))


def plan_coulomb(
    system: System,
    *,
    accuracy: float = 1e-3,
    method: Literal["ewald", "pme"] | None = None,
    cutoff: float | None = None,
    order: int | None = None,
    charges: Array | np.ndarray | None = None,
    widths: Array | np.ndarray | None = None,
) -> DirectPlan | EwaldPlan | MeshPlan:
    """A plan whose forces are expected to have no more than the requested error.

    Free boundaries give the direct sum over all pairs. Otherwise splitting and wave vectors or
    mesh are chosen so that the truncation of either part is half of the mean square error; what
    is left open (method, cutoff, order) is what promises to be fastest. The estimates hold for
    charges without order; a crystal may be better or worse by a factor of a few. Energies are
    relatively more accurate than forces by Ewald's sum, by mesh about as accurate.

    A slab, ``pbc`` true in the first two directions only, gets vacuum enough for atoms to leave
    their present range of heights by a tenth on either side.

    Args:
        system: one structure like those to come: concrete arrays, density and cell as later.
        accuracy: root mean square error of a force vector, eV/Å.
        method: ``"ewald"`` or ``"pme"``.
        cutoff: of the sum over neighbors, Å; may exceed the cell.
        order: points per direction of the B-splines of PME, 3 to 6; 4 to 6 are tried.
        charges: shape ``[n_atoms]``, e; by default ``system.charges``, else 1 e each.
        widths: standard deviations of Gaussian charges, ``[n_atoms]``, Å.

    Raises:
        ValueError: for settings out of range, other periodic directions, or Gaussian charges
            too wide for the cutoff.

    References:
        Kolafa & Perram, Mol. Simul. 9, 351 (1992) for the Ewald sum; Deserno & Holm,
        J. Chem. Phys. 109, 7694 (1998) for the mesh, times ``2.2 / (alpha h)``: their forces
        are differentiated in Fourier space, ours are derivatives of the energy, which differ
        more (measured: 1.3 to 2.5, for orders 3 to 6 and ``alpha h`` from 0.14 to 0.6).
    """
    _check_settings(accuracy, method, cutoff, order)
    pbc = tuple(np.asarray(system.pbc).tolist())
    if pbc == (False, False, False):
        return DirectPlan()
    if pbc not in ((True, True, True), (True, True, False)):
        raise ValueError(
            f"`pbc` {list(pbc)} is not supported; it may be true in no direction, in all, or in "
            "the first two (a slab normal to both): permute the axes"
        )
    found = _charges_of(system, charges, widths)
    slab_height = None
    if not pbc[2]:
        slab_height = _slab_height(system, found, accuracy, cutoff)
        normal = np.cross(found.cell[0], found.cell[1])
        third = slab_height * normal / np.linalg.norm(normal)
        found = found._replace(cell=np.stack([found.cell[0], found.cell[1], third]))
    share = accuracy / math.sqrt(2.0)
    best: tuple[float, EwaldPlan | MeshPlan] | None = None
    for r in _CUTOFFS.tolist() if cutoff is None else [float(cutoff)]:
        splitting = _splitting(found, r, share)
        if _real_error(found, r, splitting) > 1.0001 * share:
            continue  # Gaussian charges are too wide
        pair_cost = found.n_atoms**2 / found.volume * 4.0 / 3.0 * math.pi * r**3 * _PAIR_COST
        for cost, plan in _reciprocal(found, r, splitting, share, method, order, slab_height):
            if best is None or pair_cost + cost < best[0]:
                best = pair_cost + cost, plan
    if best is None:
        raise ValueError(
            f"`widths` up to {found.widest} Å reach beyond "
            f"`cutoff` {cutoff if cutoff is not None else _CUTOFFS[-1]} Å at an accuracy of "
            f"{accuracy} eV/Å; give a larger cutoff"
        )
    return best[1]


def _check_settings(
    accuracy: float, method: str | None, cutoff: float | None, order: int | None
) -> None:
    if not (math.isfinite(accuracy) and accuracy > 0.0):
        raise ValueError(f"`accuracy` must be positive (eV/Å), got {accuracy!r}")
    if method not in (None, "ewald", "pme"):
        raise ValueError(f'`method` must be "ewald" or "pme", got {method!r}')
    if cutoff is not None and not (math.isfinite(cutoff) and cutoff > 0.0):
        raise ValueError(f"`cutoff` must be positive (Å), got {cutoff!r}")
    if order is not None and not 3 <= order <= LARGEST_ORDER:
        raise ValueError(f"`order` must be from 3 to {LARGEST_ORDER}, got {order!r}")


def _charges_of(
    system: System, charges: Array | np.ndarray | None, widths: Array | np.ndarray | None
) -> _Charges:
    mask = np.asarray(system.mask)
    values = system.charges if charges is None else charges
    values = np.ones(len(mask)) if values is None else np.asarray(values, float)
    widths = np.zeros(len(mask)) if widths is None else np.asarray(widths, float)
    for name, array in (("charges", values), ("widths", widths)):
        if array.shape != mask.shape:
            raise ValueError(f"`{name}` must have shape {mask.shape}, got {array.shape}")
    strength = COULOMB_CONSTANT * float(np.sum(values[mask] ** 2))
    return _Charges(
        strength=max(strength, 1e-12),
        n_atoms=max(int(mask.sum()), 1),
        cell=np.asarray(system.cell, float),
        widest=float(widths[mask].max(initial=0.0)),
    )


def _slab_height(system: System, found: _Charges, accuracy: float, cutoff: float | None) -> float:
    """Thickness of the slab, and vacuum in which the field of the next one has died out."""
    a, b, _ = found.cell
    area = np.cross(a, b)
    positions = np.asarray(system.positions, float)[np.asarray(system.mask)]
    thickness = float(np.ptp(positions @ area)) / np.linalg.norm(area) if len(positions) else 0.0
    shortest = _shortest_wave_vector(a, b)
    decades = math.log(max(10.0 * found.strength / accuracy, 10.0))
    gap = max(decades / shortest, cutoff if cutoff is not None else 0.0)
    return float(1.2 * thickness + gap + 12.0 * found.widest)


def _shortest_wave_vector(a: np.ndarray, b: np.ndarray) -> float:
    """Length of the shortest nonzero reciprocal vector of a plane lattice, 1/Å."""
    reciprocal = 2.0 * math.pi * np.linalg.pinv(np.stack([a, b])).T
    multiples = np.array([(i, j) for i in range(-3, 4) for j in range(-3, 4) if (i, j) != (0, 0)])
    return float(np.linalg.norm(multiples @ reciprocal, axis=1).min())


def _splitting(found: _Charges, cutoff: float, error: float) -> float:
    """The least ``alpha`` for which the sum over neighbors may end at the cutoff, 1/Å."""
    scale = 2.0 * found.strength / math.sqrt(found.n_atoms * cutoff * found.volume)
    return math.sqrt(max(math.log(scale / error), 1.0)) / cutoff


def _real_error(found: _Charges, cutoff: float, splitting: float) -> float:
    """Error of a force by what lies beyond the cutoff, eV/Å (Kolafa & Perram, Eq. 18)."""
    slowest = splitting
    if found.widest > 0.0:
        slowest = min(slowest, 0.5 / found.widest)
    scale = 2.0 * found.strength / math.sqrt(found.n_atoms * cutoff * found.volume)
    return scale * math.exp(-((slowest * cutoff) ** 2)) if slowest < splitting else 0.0


def _wave_error(found: _Charges, splitting: float, k_max: float) -> float:
    """Error of a force by the wave vectors beyond ``k_max``, eV/Å (Kolafa & Perram, Eq. 32)."""
    scale = math.sqrt(2.0 / (k_max * found.n_atoms * found.volume))
    return 2.0 * found.strength * splitting * scale * math.exp(-((0.5 * k_max / splitting) ** 2))


def _mesh_error(found: _Charges, splitting: float, spacing: float, order: int) -> float:
    """Error of a force by a mesh of this spacing, eV/Å; see :func:`plan_coulomb`."""
    x, edge = splitting * spacing, math.cbrt(found.volume)
    series = sum(c * x ** (2 * m) for m, c in enumerate(_SPLINE_ERRORS[order]))
    root = math.sqrt(splitting * edge * math.sqrt(2.0 * math.pi) * series / found.n_atoms)
    return 2.2 * found.strength * x ** (order - 1) * root / edge**2


def _reciprocal(
    found: _Charges,
    cutoff: float,
    splitting: float,
    error: float,
    method: str | None,
    order: int | None,
    slab_height: float | None,
) -> Iterator[tuple[float, EwaldPlan | MeshPlan]]:
    """Cost (ns) and plan of the ways to sum over wave vectors with at most this error."""
    common = {"splitting": splitting, "cutoff": cutoff, "slab_height": slab_height}
    if method != "pme":
        k_max = _bisect(lambda k: _wave_error(found, splitting, k) - error, splitting)
        x, y, z = found.cell.tolist()
        plan = EwaldPlan(cell=(tuple(x), tuple(y), tuple(z)), k_max=k_max, **common)
        box = np.linalg.norm(found.cell, axis=1) * k_max / math.pi
        yield found.n_atoms * float(np.prod(box)) / 2.0 * _PHASE_COST, plan
    if method != "ewald":
        lengths = np.linalg.norm(found.cell, axis=1)
        for points in (4, 5, 6) if order is None else (order,):
            fineness = _bisect(
                lambda n, p=points: _mesh_error(found, splitting, 1.0 / n, p) - error, splitting
            )
            x, y, z = (max(_smooth(length * fineness), 2 * points) for length in lengths.tolist())
            plan = MeshPlan(mesh=(x, y, z), order=points, **common)
            cost = found.n_atoms * points**3 * _SPREAD_COST + x * y * z * _MESH_COST
            yield cost, plan


def _bisect(excess: Callable[[float], float], start: float) -> float:
    """The least argument, from ``start`` up, at which a falling function is not positive."""
    low = high = start
    while excess(high) > 0.0:
        low, high = high, 1.5 * high
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) > 0.0 else (low, middle)
    return high


def _smooth(length: float) -> int:
    """The least product of 2, 3 and 5 that is not below ``length``."""
    n = max(1, math.ceil(length - 1e-9))
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
