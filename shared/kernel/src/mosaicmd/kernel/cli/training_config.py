"""The settings of `mosaicmd train`.

For example::

data: {train: silicon.extxyz, validation: 0.1, test: held_out.extxyz}
potential: {architecture: painn, config: {species: [14], cutoff: 5 A}}
loss: {energy: 1.0, forces: {weight: 1.0, huber: 0.5}, stress: 10.0}
optimizer: {name: adam, learning_rate: 5.0e-4, schedule: {name: cosine_decay}}
max_gradient_norm: 10.0
batch_size: 8
epochs: 200
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mosaicmd.kernel.config import Config, load_config
from mosaicmd.kernel.dispersion import DispersionConfig
from mosaicmd.kernel.precision import Precision

C = TypeVar("C", bound=Config)


class DataFile(Config):
    """One file of labelled structures; its path alone is short for this.

    Fields are those of :func:`mosaicmd.kernel.data.read_structures`. ``ignore`` names columns
    that look like labels and are not to be read.
    """

    path: Path
    length_unit: str = "A"
    energy_unit: str = "eV"
    names: dict[str, str] = Field(default_factory=dict)
    species: dict[str, str | int] | None = None
    masses: dict[str, float] | None = None
    min_distance: float = Field(default=0.3, ge=0.0)
    ignore: tuple[str, ...] = ()


def _as_files(value: Any) -> Any:
    """A path, a mapping or a list of these as a list of mappings; fractions stay."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    files = list(value) if isinstance(value, list | tuple) else [value]
    return [{"path": one} if isinstance(one, str | os.PathLike) else one for one in files]


_Shorthand = str | DataFile | list[str | DataFile]
Files = Annotated[
    tuple[DataFile, ...], BeforeValidator(_as_files, json_schema_input_type=_Shorthand)
]
FilesOrFraction = Annotated[
    float | tuple[DataFile, ...],
    BeforeValidator(_as_files, json_schema_input_type=float | _Shorthand),
]


class DataConfig(Config):
    """Where structures come from; a fraction is drawn at random from the training files."""

    train: Files = Field(min_length=1)
    validation: FilesOrFraction = 0.1
    test: FilesOrFraction = 0.0

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        drawn = [one for one in (self.validation, self.test) if isinstance(one, float)]
        if any(one < 0.0 for one in drawn) or sum(drawn) >= 1.0:
            raise ValueError("fractions must not be negative, and leave something to train on")
        return self

    def files(self) -> dict[str, tuple[DataFile, ...]]:
        """The files of each split that has its own."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if not isinstance(part, float)}


class TermConfig(Config):
    """A potential by the name of its architecture, with the settings of that."""

    architecture: str
    config: dict[str, Any] = Field(default_factory=dict)


def _as_terms(value: Any) -> Any:
    return [value] if isinstance(value, Mapping | TermConfig) else value


Terms = Annotated[
    tuple[TermConfig, ...],
    BeforeValidator(_as_terms, json_schema_input_type=TermConfig | list[TermConfig]),
]


class LossTerm(Config):
    """Weight of a label; beyond ``huber`` deviations count linearly. A number is the weight."""

    weight: float = Field(ge=0.0)
    huber: float | None = Field(default=None, gt=0.0)


def _as_loss_term(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"weight": value} if is_number else value


Weight = Annotated[
    LossTerm | None, BeforeValidator(_as_loss_term, json_schema_input_type=float | LossTerm | None)
]


class LossConfig(Config):
    """Weights of energies (per atom, eV), forces (eV/Å), stresses (eV/Å³) and charges (e).

    Labels that the data have need a weight, which is 0 if they are left out on purpose. Charges
    can be learned by potentials that predict them.
    """

    energy: Weight = None
    forces: Weight = None
    stress: Weight = None
    charges: Weight = None


class ScheduleConfig(Config):
    """A learning-rate schedule of optax, with or without ``_schedule`` in its name.

    Where ``options`` do not say otherwise, the highest rate is ``learning_rate`` and the
    schedule lasts as long as the training.
    """

    name: str = "constant"
    options: dict[str, Any] = Field(default_factory=dict)


class OptimizerConfig(Config):
    """An optimiser of optax by its name; ``lbfgs`` finds its own learning rate.

    ``muon`` is :func:`mosaicmd.kernel.muon.muon`.
    """

    name: str = "adam"
    learning_rate: float = Field(default=1e-3, gt=0.0)
    options: dict[str, Any] = Field(default_factory=dict)
    schedule: ScheduleConfig = ScheduleConfig()


class AdapterConfig(Config):
    """Low-rank adapters of the matrices whose path matches one of ``patterns``."""

    rank: int = Field(ge=1)
    patterns: tuple[str, ...] = Field(default=("*",), min_length=1)


class TrainingConfig(Config):
    """Everything that `mosaicmd train` needs to know; relative paths start at the file.

    With ``init_from``, a model directory, its potential is trained further. ``freeze`` keeps
    parameters whose path matches a pattern, such as ``"embedding"`` or ``"layers/0/*"``;
    with ``adapters`` nothing but changes of low rank is trained, and merged in the end.
    ``reference_energies`` are fitted (``fit``), those of the model (``keep``), none, or
    given, eV by symbol or label; they become part of the model. So does ``dispersion``, which
    labels are taken to contain and which the potential does not learn; with ``init_from``
    that of the model is kept. ``precision`` is that of training and of the model, see
    :mod:`mosaicmd.kernel.precision`.
    """

    data: DataConfig
    potential: Terms | None = None  # several are summed
    init_from: Path | None = None
    freeze: tuple[str, ...] = ()
    adapters: AdapterConfig | None = None
    reference_energies: Literal["fit", "keep", "none"] | dict[str, float] = "fit"
    dispersion: DispersionConfig | None = None
    loss: LossConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    max_gradient_norm: float | None = Field(default=None, gt=0.0)
    average_decay: float = Field(default=0.99, ge=0.0, lt=1.0)
    batch_size: int = Field(default=8, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    validate_every: int | None = Field(default=None, ge=1)  # steps; by default an epoch
    checkpoint_every: int | None = Field(default=None, ge=1)  # steps; by default an epoch
    patience: int | None = Field(default=None, ge=1)  # validations without a gain
    separate: bool = False  # structures are not joined, for potentials that need their cell
    check_stress: bool = True
    precision: Precision = "float32"
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, settings: Any) -> Any:
        if isinstance(settings, Mapping) and settings.get("init_from") is not None:
            return {"reference_energies": "keep", **settings}
        return settings

    @field_validator("potential")
    @classmethod
    def _has_terms(cls, terms: tuple[TermConfig, ...] | None) -> tuple[TermConfig, ...] | None:
        if terms == ():
            raise ValueError("needs at least one term")
        return terms

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        if (self.potential is None) == (self.init_from is None):
            raise ValueError("give either `potential` or `init_from`, a model directory")
        if self.adapters is not None and (self.init_from is None or self.freeze):
            raise ValueError(
                "`adapters` change the model of `init_from`, and keep all of it without `freeze`"
            )
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either `epochs` or `steps`")
        if self.reference_energies == "keep" and self.init_from is None:
            raise ValueError("`reference_energies` can be kept only with `init_from`")
        validates = self.data.validation != 0.0
        if self.patience is not None and not validates:
            raise ValueError("`patience` needs structures for `data.validation`")
        return self


def load_training_config(path: Path) -> TrainingConfig:
    """The settings in a file, their paths made absolute.

    Raises:
        ConfigError: as :func:`mosaicmd.kernel.config.load_config`.
    """
    return _with_absolute_paths(load_config(TrainingConfig, path), path.resolve().parent)


def _with_absolute_paths(config: C, folder: Path) -> C:
    changes: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Path):
            changes[name] = (folder / value.expanduser()).resolve()
        elif isinstance(value, Config):
            changes[name] = _with_absolute_paths(value, folder)
        elif isinstance(value, tuple) and any(isinstance(one, Config) for one in value):
            changes[name] = tuple(_with_absolute_paths(one, folder) for one in value)
    return config.model_copy(update=changes)
