"""The settings of the experiment."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from mosaicmd.kernel.config import Config, ConfigError, Length, Temperature, Time
from mosaicmd.kernel.registry import datasets, fetch

Model = Literal["local", "celli", "fourth", "mace"]


class FitConfig(Config):
    """What one training may spend, and the weights of its loss."""

    steps: int = Field(ge=1)
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=2e-2, gt=0.0)  # of `muon`
    energy: float = Field(default=10.0, ge=0.0)  # per atom, (eV)⁻²
    forces: float = Field(default=1.0, ge=0.0)  # (eV/Å)⁻²
    charges: float = Field(default=10.0, ge=0.0)  # e⁻², of what predicts charges
    charge_steps: int = Field(default=500, ge=1)  # of the first stage, on charges alone


class SetConfig(Config):
    """Labelled structures, and the models that learn them.

    ``file`` and ``curves`` are paths beside the app or the settings file, or registered data
    sets. ``network`` is that of Allegro, without ``species``; of each ``group`` (equal
    composition and net charge) the share ``test`` is held out.
    """

    file: str
    curves: str | None = None
    names: dict[str, str] = Field(default_factory=dict)  # of labels in the file
    species: tuple[int, ...] = Field(min_length=1)
    network: dict[str, Any]
    mace: dict[str, Any] = Field(default_factory=dict)
    symmetry_functions: dict[str, Any] = Field(default_factory=dict)
    electronegativity: tuple[float, ...] | float = 0.0
    hardness: tuple[float, ...] | float = 1.0
    widths: tuple[Length, ...] | Length = 1.4
    coulomb_accuracy: float = Field(default=1e-2, gt=0.0)  # of forces in periodic cells, eV/Å
    test: float = Field(default=0.2, gt=0.0, lt=1.0)
    validation: float = Field(default=0.1, gt=0.0, lt=1.0)  # of what is not held out
    seeds: int = Field(default=1, ge=1)
    published: str | None = None  # a benchmark in `published.py`
    models: dict[Model, FitConfig] = Field(min_length=1)


class DynamicsConfig(Config):
    """Dynamics at constant energy of charged clusters with the model `celli`."""

    sets: tuple[str, ...]
    temperature_kelvin: Temperature = Field(gt=0.0)
    timestep_fs: Time = Field(default=1.0, gt=0.0)
    duration_ps: float = Field(gt=0.0)
    every: int = Field(default=20, ge=1)  # steps between frames


class CostConfig(Config):
    """Time per step of `celli` and `mace` of one set, in a crystal.

    With a ``lattice_constant`` it is that of rock salt, else one of copies of a structure held
    out, side by side.
    """

    set: str
    repeats: tuple[int, ...] = Field(min_length=1)  # of the cell, along every edge
    lattice_constant: Length | None = Field(default=None, gt=0.0)
    gap: Length = Field(default=3.5, gt=0.0)  # between the outermost atoms of copies
    steps: int = Field(default=10, ge=2)
    accuracy: float = Field(default=1e-2, gt=0.0)  # of Coulomb forces, eV/Å


class ChargeTransferConfig(Config):
    """The whole experiment; ``headline`` names the sets that the figures of merit pool."""

    seed: int
    sets: dict[str, SetConfig] = Field(min_length=1)
    headline: tuple[str, ...] = ()
    dynamics: DynamicsConfig | None = None
    cost: CostConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> "ChargeTransferConfig":
        named = {"headline": self.headline}
        named["dynamics.sets"] = () if self.dynamics is None else self.dynamics.sets
        named["cost.set"] = () if self.cost is None else (self.cost.set,)
        for name, sets in named.items():
            if unknown := sorted(set(sets) - set(self.sets)):
                raise ValueError(f"`{name}` {unknown} are not among `sets` {sorted(self.sets)}")
        needed = {"dynamics.sets": {"celli"}, "cost.set": {"celli", "mace"}}
        for name, models in needed.items():
            for one in named[name]:
                if missing := sorted(models - set(self.sets[one].models)):
                    raise ValueError(f"`{name}` needs the models {missing} of the set {one!r}")
        return self


def find(name: str, *folders: Path) -> Path:
    """A file in one of some folders, or a registered data set.

    Raises:
        ConfigError: if it is neither.
        DataSetError: for a registered data set that cannot be had.
    """
    for folder in folders:
        if (folder / name).is_file():
            return (folder / name).resolve()
    if name in datasets():
        return fetch(name)
    raise ConfigError(
        f"{name!r} is no file in {' or '.join(map(str, folders))} and no registered data set"
    )
