"""What models say about structures they have not learned from, and how far off they are."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from trainings import groups, slot_format

from mosaicmd.kernel.data import DataError, Labels, labels_of, read_structures
from mosaicmd.kernel.examples import make_examples
from mosaicmd.kernel.label_errors import predict
from mosaicmd.kernel.potentials import Params, Potential
from mosaicmd.kernel.slots import join
from mosaicmd.kernel.systems import from_ase

N_RESAMPLED = 1000


class Answers(NamedTuple):
    """Predictions, or labels, one entry per structure."""

    energies: np.ndarray  # eV per atom
    forces: list[np.ndarray]  # [n_atoms, 3], eV/Å
    charges: list[np.ndarray] | None  # [n_atoms], e


class Squares(NamedTuple):
    """Mean squared deviations of every structure; of a model with several seeds, of each."""

    energy: np.ndarray  # [n_seeds, n_structures], (meV/atom)²
    forces: np.ndarray  # (meV/Å)²
    charges: np.ndarray | None  # (me)²


class Curves(NamedTuple):
    """Energies while one atom comes off, at two net charges."""

    distances: np.ndarray  # [n], Å
    charges: tuple[float, float]  # net, e
    energies: dict[str, np.ndarray]  # by model, and `reference`: [2, n], eV


def labels(frames: Sequence[Any]) -> Answers:
    """What the structures are labelled with."""
    known = [labels_of(atoms) for atoms in frames]
    energies = [float(one.energy) / len(a) for one, a in zip(known, frames, strict=True)]  # pyright: ignore
    charges = [np.asarray(one.charges) for one in known]
    return Answers(
        np.array(energies),
        [np.asarray(one.forces) for one in known],
        None if any(one.charges is None for one in known) else charges,
    )


def answers(model: tuple[Potential, Params], frames: Sequence[Any]) -> Answers:
    """What a model says, in float64; one program for structures of all sizes."""
    potential, params = model
    data = [(from_ase(atoms, dtype="float64"), Labels()) for atoms in frames]
    examples = make_examples(data, potential.cutoff, dtype="float64")
    form = slot_format(examples)
    asked = ("energy", "forces") + ("charges",) * (potential.charges is not None)
    program = jax.jit(
        lambda params, slot: predict(potential.energy, params, slot, asked, potential.charges)
    )
    found = [jax.device_get(program(params, join([one], form))) for one in examples]
    sizes = [len(atoms) for atoms in frames]
    charges = [one.charges[:n] for one, n in zip(found, sizes, strict=True) if "charges" in asked]
    return Answers(
        np.array([one.energy[0] / n for one, n in zip(found, sizes, strict=True)]),
        [one.forces[:n] for one, n in zip(found, sizes, strict=True)],
        charges or None,
    )


def squares(predicted: Sequence[Answers], given: Answers) -> Squares:
    """Deviations of the predictions of several seeds."""
    energy = [(1e3 * (one.energies - given.energies)) ** 2 for one in predicted]
    forces = [_means(one.forces, given.forces) for one in predicted]
    charges = None
    if given.charges is not None and predicted[0].charges is not None:
        charges = np.array([_means(one.charges or [], given.charges) for one in predicted])
    return Squares(np.array(energy), np.array(forces), charges)


def rmse(*values: np.ndarray) -> tuple[float, float]:
    """Root mean square of sets together, and its standard error.

    The mean over seeds of the root of the mean over all structures. Errors are those of drawing
    other test structures, each set from its own (bootstrap), and of drawing other seeds.

    Args:
        values: mean squares, ``[n_seeds, n_structures]``, of one set each.
    """
    n_seeds = min(len(one) for one in values)

    def root(parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.sqrt(np.concatenate([one[:n_seeds] for one in parts], axis=1).mean(axis=1))

    of_seeds = root(values)
    rng = np.random.default_rng(0)
    drawn = [
        root([one[:, rng.integers(one.shape[1], size=one.shape[1])] for one in values]).mean()
        for _ in range(N_RESAMPLED)
    ]
    error = float(np.std(drawn))
    if n_seeds > 1:
        error = float(np.hypot(error, of_seeds.std(ddof=1) / np.sqrt(n_seeds)))
    return float(of_seeds.mean()), error


def taken_for_others(
    predicted: Sequence[Answers], given: Answers, frames: Sequence[Any]
) -> float | None:
    """Percent of structures whose energy is nearer to the mean of another net charge.

    ``None`` unless the set has one composition in two charge states.
    """
    members = groups(list(frames))
    if len({formula for formula, _ in members}) != 1 or len(members) != 2:
        return None
    first, second = (given.energies[index].mean() for index in members.values())
    middle = 0.5 * (first + second)
    wrong = [(one.energies > middle) != (given.energies > middle) for one in predicted]
    return 100.0 * float(np.mean(wrong))


def curves(file: Any, models: dict[str, Callable[[Sequence[Any]], Answers]]) -> Curves:
    """Energies along the two curves of a file, in the order of the distance.

    The curves are structures of equal composition and net charge; each says its `distance`.
    """
    frames = read_structures(file)
    members = list(groups(frames).items())
    lines = [[frames[i] for i in index] for _, index in members]
    if any("distance" not in atoms.info for atoms in frames):
        raise DataError(f"{file} has structures without a `distance` (Å), which curves are over")
    distances = []
    for line in lines:
        line.sort(key=lambda atoms: atoms.info["distance"])
        distances.append(np.array([atoms.info["distance"] for atoms in line]))
    if len(lines) != 2 or len(lines[0]) != len(lines[1]) or not np.allclose(*distances, atol=1e-6):
        raise DataError(f"{file} must hold two curves over the same distances")
    ask: dict[str, Callable[[Sequence[Any]], Answers]] = {"reference": labels, **models}
    energies = {
        name: np.array([one(line).energies * len(line[0]) for line in lines])
        for name, one in ask.items()
    }
    (_, first), (_, second) = (group for group, _ in members)
    return Curves(distances[0], (first, second), energies)


def removal_slope(found: Curves, name: str) -> float:
    """How the energy that the net charge costs changes with distance, eV/Å.

    The slope of a line through ``E(higher net charge) - E(lower)``; what is local knows nothing
    of the charge at the other end, and says zero.
    """
    low, high = np.argsort(found.charges)
    energies = found.energies[name]
    return float(np.polyfit(found.distances, energies[high] - energies[low], 1)[0])


def minima(found: Curves, name: str) -> np.ndarray:
    """Where each of the two curves is lowest, Å, by a polynomial of fourth degree."""
    fine = np.linspace(found.distances[0], found.distances[-1], 2001)
    middle = found.distances.mean()
    lowest = []
    for energies in found.energies[name]:
        fit = np.polyfit(found.distances - middle, energies, 4)
        lowest.append(fine[np.polyval(fit, fine - middle).argmin()])
    return np.array(lowest)


def curve_deviations(found: Curves, name: str) -> np.ndarray:
    """Deviations of both curves from the reference, less the mean of each, meV: ``[2, n]``."""
    deviations = found.energies[name] - found.energies["reference"]
    return 1e3 * (deviations - deviations.mean(axis=1, keepdims=True))


def _means(predicted: Sequence[np.ndarray], given: Sequence[np.ndarray]) -> np.ndarray:
    """Mean squares of the components of every structure, in thousandths, squared."""
    pairs = zip(predicted, given, strict=True)
    return np.array([np.mean((1e3 * (one - other)) ** 2) for one, other in pairs])
