"""Labelled structures from the files of a configuration: read, checked, and split."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mosaicmd.kernel.cli.training_config import DataConfig, DataFile
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.data import Labels, labels_of, read_structures
from mosaicmd.kernel.examples import Example
from mosaicmd.kernel.label_checks import check_stress
from mosaicmd.kernel.systems import System, from_ase

if TYPE_CHECKING:
    import ase

Data = list[tuple[System, Labels]]

_LOOKS_LIKE = {
    "energy": re.compile(r"energ", re.IGNORECASE),
    "forces": re.compile(r"force|gradient", re.IGNORECASE),
    "stress": re.compile(r"stress|virial", re.IGNORECASE),
    "charges": re.compile(r"(?<!total_)charge", re.IGNORECASE),
}
_FEWEST_FOR_STRESS = 4


def read_labelled(file: DataFile) -> Data:
    """Structures and labels of one file.

    Raises:
        DataError: as :func:`mosaicmd.kernel.data.read_structures`.
        ConfigError: for a column that looks like a label and would not be read.
    """
    settings = file.model_dump(exclude={"path", "ignore"})
    structures = read_structures(file.path, **settings)
    data = [(from_ase(atoms), labels_of(atoms)) for atoms in structures]
    columns = _columns(file.path, structures)
    if unknown := sorted(set(file.ignore) - columns):
        raise ConfigError(
            f"{file.path} has no column {unknown} to ignore; it has {sorted(columns)}"
        )
    for label, pattern in _LOOKS_LIKE.items():
        if any(getattr(labels, label) is not None for _, labels in data):
            continue
        for column in sorted(columns - set(file.ignore)):
            if pattern.search(column):
                sign = "-" if "gradient" in column.lower() else ""
                virial = (
                    " (if it is a stress: a virial must be divided by the volume first)"
                    if "virial" in column.lower()
                    else ""
                )
                raise ConfigError(
                    f"{file.path} has a column `{column}` that looks like `{label}`, which "
                    f"nothing else there is; read it by `names: {{{label}: {sign}{column}}}`"
                    f"{virial}, or leave it out by `ignore: [{column}]`"
                )
    return data


def read_splits(config: DataConfig, seed: int) -> dict[str, Data]:
    """The structures of ``train``, ``validation`` and ``test``; splits without any are left out.

    Fractions are drawn from the training files by a permutation that follows from the seed.

    Raises:
        DataError: for files that cannot be read.
        ConfigError: for columns that are not used, and fractions that leave nothing.
    """
    data = {
        name: [pair for file in files for pair in read_labelled(file)]
        for name, files in config.files().items()
    }
    every = data["train"]
    order = np.random.default_rng([seed, 1]).permutation(len(every))
    start = 0
    for name in ("test", "validation"):
        fraction = getattr(config, name)
        if isinstance(fraction, float) and fraction > 0.0:
            n = round(fraction * len(every))
            if n == 0:
                raise ConfigError(
                    f"data.{name}: {fraction} of {len(every)} structures is none; give a larger "
                    "fraction, or 0"
                )
            data[name] = [every[i] for i in sorted(order[start : start + n])]
            start += n
    data["train"] = [every[i] for i in sorted(order[start:])]
    if not data["train"]:
        raise ConfigError(f"data: no structure of {len(every)} is left to train on")
    return {name: data[name] for name in ("train", "validation", "test") if name in data}


def require_right_stress(examples: Sequence[Example], seed: int) -> None:
    """Compare stress labels with what forces imply.

    Raises:
        ConfigError: if they have the wrong sign, unit or order.
    """
    labelled = [e for e in examples if e.targets.stress_weight > 0.0]
    has_forces = any(np.any(e.targets.forces_weight > 0.0) for e in labelled)
    if len(labelled) < _FEWEST_FOR_STRESS or not has_forces:
        return
    report = check_stress(labelled, seed=seed)
    if report.problems:
        raise ConfigError(
            f"stress labels do not agree with the forces (compared {report.n_structures} "
            f"structures): {'; '.join(report.problems)}. If they are right all the same, set "
            "`check_stress: false`"
        )
    if not report.conclusive:
        warnings.warn(
            "stress labels could not be checked: no sign, unit or order agrees with what the "
            f"forces imply (concordance {report.concordance:.2f})",
            stacklevel=2,
        )


def _columns(path: Path, structures: Sequence[ase.Atoms]) -> set[str]:
    """Names of what a file holds beside what every structure has."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".npz":
        with np.load(path) as file:
            return set(file.files)
    if suffixes and suffixes[-1] in (".h5", ".hdf5"):
        import h5py

        names: set[str] = set()
        with h5py.File(path, "r") as file:
            file.visit(lambda name: names.add(name.rsplit("/", 1)[-1]) or None)
        return names
    usual = {"numbers", "positions", "masses", "tags", "momenta", "initial_magmoms"}
    found = {name for atoms in structures for name in (*atoms.arrays, *atoms.info)}
    return found - usual
