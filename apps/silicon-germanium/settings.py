"""The settings of the experiment."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from mosaicmd.kernel.config import Config, ConfigError, Length, Temperature, Time
from mosaicmd.kernel.registry import datasets, fetch

SCRATCH = "scratch"  # what every strategy is compared with


class ModelConfig(Config):
    """A network by the name of its architecture; ``cutoff`` (Å) is that for the source."""

    architecture: str
    cutoff: Length = Field(gt=0.0)
    config: dict[str, Any] = Field(default_factory=dict)


class StrategyConfig(Config):
    """How the target starts from the source; see `mosaicmd.transfer.Strategy`.

    ``scales: tables`` are ratios of lattice constants and of cohesive energies, ``fit`` those
    that bring forces of the source closest to labels that the trial may learn from.
    """

    scales: Literal["tables", "fit"] | None = None
    reinitialise: tuple[str, ...] = ()
    rates: dict[str, float] = Field(default_factory=dict)
    pull: float = Field(default=0.0, ge=0.0)
    adapters: tuple[str, ...] = ()
    rank: int = Field(default=4, ge=1)


class ElementFiles(Config):
    """Labelled structures of one element: paths, or names of registered data sets."""

    train: str
    test: str


class SyntheticElement(Config):
    """A Stillinger–Weber element; ``a`` is the edge of its cubic cell of eight atoms, Å."""

    symbol: str
    epsilon: float = Field(gt=0.0)  # eV
    sigma: float = Field(gt=0.0)  # Å
    strength: float = Field(gt=0.0)  # lambda
    a: Length = Field(gt=0.0)


class DynamicsConfig(Config):
    """How synthetic structures are sampled: strained crystals, heated to each temperature."""

    temperatures_kelvin: tuple[Temperature, ...] = Field(min_length=1)
    repeats: int = Field(default=2, ge=2)  # cubic cells along each edge
    timestep_fs: Time = Field(default=1.0, gt=0.0)
    every: int = Field(default=100, ge=1)  # steps between structures
    n_equilibration: int = Field(default=20, ge=0)  # structures
    n_cells: int = Field(default=4, ge=1)  # per temperature, each under its own strain
    n_train: int = Field(ge=1)  # per temperature
    n_test: int = Field(ge=1)
    strain: float = Field(default=0.03, ge=0.0)  # random, of every cell


class BudgetConfig(Config):
    """What one training may spend: steps of ``batch_size`` structures, alike for all strategies."""

    source_steps: int = Field(ge=1)
    steps: int = Field(ge=1)
    batch_size: int = Field(default=2, ge=1)
    source_rate: float = Field(gt=0.0)
    validation: float = Field(default=0.15, gt=0.0, le=0.5)  # share of each subset
    energy_weight: float = Field(default=10.0, ge=0.0)
    forces_weight: float = Field(default=1.0, ge=0.0)
    stress_weight: float = Field(default=500.0, ge=0.0)


class TrainingConfig(BudgetConfig):
    """The trainings of a pair."""

    rates: tuple[float, ...] = Field(min_length=1)  # to try, for every strategy and size
    tuning_seeds: int = Field(default=1, ge=1)  # with which rates are tried
    shares: tuple[float, ...] = Field(min_length=1)  # of the training structures
    seeds: int = Field(ge=1)
    only_groups: tuple[str, ...] = ()  # a further training, of the least share, knows these alone

    @model_validator(mode="after")
    def _check(self) -> "TrainingConfig":
        if bad := [share for share in self.shares if not 0.0 < share <= 1.0]:
            raise ValueError(f"`shares` {bad} are not above 0 and at most 1")
        if self.tuning_seeds > self.seeds:
            raise ValueError(f"`tuning_seeds` {self.tuning_seeds} exceed the {self.seeds} `seeds`")
        return self


class HotConfig(Config):
    """Hot dynamics of models from the fewest structures, until something unphysical happens.

    Every model starts ``replicas`` runs from the same test structures, in turn those of ``group``.
    ``models`` of each strategy take part; those beyond ``seeds`` are trained for this alone.
    """

    temperature_kelvin: Temperature = Field(gt=0.0)
    timestep_fs: Time = Field(default=2.0, gt=0.0)
    duration_ps: float = Field(gt=0.0)
    models: int = Field(default=1, ge=1)
    replicas: int = Field(default=8, ge=1)
    min_distance: Length = Field(gt=0.0)  # a pair closer than this is unphysical, Å
    group: str | None = None  # of the structures to start from
    liquid: bool = False  # compare radial distribution and diffusion with those of the truth


class PairConfig(Config):
    """Source and target, from files or synthetic, and the trainings."""

    source: ElementFiles | SyntheticElement
    target: ElementFiles | SyntheticElement
    model: ModelConfig | None = None  # in place of that of all pairs
    cohesive_energies: tuple[float, float] | None = None  # eV, for `scales: tables` of files
    dynamics: DynamicsConfig | None = None  # of synthetic elements
    training: TrainingConfig
    hot: HotConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> "PairConfig":
        kinds = {type(self.source), type(self.target)}
        if len(kinds) > 1:
            raise ValueError("`source` and `target` must both be files or both be synthetic")
        if SyntheticElement in kinds and self.dynamics is None:
            raise ValueError("synthetic elements need `dynamics`")
        if self.hot is not None and self.hot.liquid and SyntheticElement not in kinds:
            raise ValueError("`liquid` needs a synthetic pair: files do not say what is true")
        return self


class TransferConfig(Config):
    """The whole experiment; the first strategy is the one whose figures bear no name."""

    seed: int
    model: ModelConfig
    strategies: dict[str, StrategyConfig] = Field(min_length=1)
    pairs: dict[str, PairConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "TransferConfig":
        if SCRATCH in self.strategies:
            raise ValueError(f"`strategies` must not name {SCRATCH!r}: it is always there")
        return self


def find(name: str, base: Path) -> Path:
    """A file of the user, or a registered data set.

    Raises:
        ConfigError: if it is neither.
        DataSetError: for a registered data set that cannot be had.
    """
    path = base / name
    if path.is_file():
        return path
    if name in datasets():
        return fetch(name)
    raise ConfigError(f"{name!r} is no file in {base} and no registered data set")
