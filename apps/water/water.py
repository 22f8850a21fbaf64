"""The problem: beads of water, the potential that is learned, and what was measured."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pydantic import Field, model_validator

from mosaicmd.difftre import Target, Update, first_order, gauss_newton, load_measurement
from mosaicmd.gnn_models import (
    DimeNetConfig,
    PairSplineConfig,
    SoftRepulsionConfig,
    ThreeBodyConfig,
    dimenet,
    pair_spline,
    scaled,
    soft_repulsion,
    three_body,
)
from mosaicmd.kernel import observables, units
from mosaicmd.kernel.config import Config, Density, Energy, Pressure, Temperature, Time
from mosaicmd.kernel.graphs import host_graph, pad_graph
from mosaicmd.kernel.integrators import langevin
from mosaicmd.kernel.observables import Observable
from mosaicmd.kernel.potentials import Potential, sum_potentials, total_energy
from mosaicmd.kernel.simulation import Simulation
from mosaicmd.kernel.systems import System, make_system

OXYGEN = 8
WATER_MASS = 18.01528  # u
ADF_CUTOFF = 3.18  # Å, that of the measurement
SPLINE = 1  # place among the terms of the potential


class NetworkConfig(DimeNetConfig):
    """DimeNet++ whose numbers are energies in ``energy_unit``, eV."""

    energy_unit: Energy = Field(gt=0.0)


class ModelConfig(Config):
    """A prior, and what is learned: a spline and a three-body term, or a network."""

    prior: SoftRepulsionConfig
    spline: PairSplineConfig | None = None
    three_body: ThreeBodyConfig | None = None
    network: NetworkConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        classical = (self.spline is not None, self.three_body is not None)
        if any(classical) == (self.network is not None) or any(classical) != all(classical):
            raise ValueError("needs `spline` and `three_body`, or `network`")
        return self


class RunConfig(Config):
    """How to simulate; ``friction_per_ps`` is that of the Langevin thermostat.

    With ``replicas``, each of them runs for that long. After every ``chunk_frames`` frames progress
    is shown and a run can be resumed.
    """

    timestep_fs: Time = Field(gt=0.0)
    equilibration_ps: Time = Field(ge=0.0)
    production_ps: Time = Field(gt=0.0)
    frame_ps: Time = Field(gt=0.0)
    friction_per_ps: float = Field(default=1.0, gt=0.0)
    skin: float = Field(default=0.8, ge=0.0)
    chunk_frames: int = Field(default=100, ge=1)
    replicas: int | None = Field(default=None, ge=1)

    @property
    def every(self) -> int:
        """Steps between frames."""
        return max(1, round(1000.0 * self.frame_ps / self.timestep_fs))

    def steps(self, duration_ps: float) -> int:
        """Steps in a duration, rounded up to whole frames."""
        frames = int(np.ceil(1000.0 * duration_ps / self.timestep_fs / self.every - 1e-9))
        return frames * self.every


class TrainingConfig(RunConfig):
    """``learning_rate``, which falls to a share ``decay`` over the run, and betas are Adam's.

    ``keep_fraction`` is the effective share of the frames that an update must leave. Beyond
    ``clip_bar`` deviations of the pressure count linearly, lest the first steps see nothing
    else.
    """

    optimizer: Literal["gauss_newton", "adam"] = "gauss_newton"
    learning_rate: float = Field(default=2.0e-3, gt=0.0)
    decay: float = Field(default=0.1, gt=0.0, le=1.0)
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    beta2: float = Field(default=0.999, gt=0.0, lt=1.0)
    keep_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    n_updates: int = Field(gt=0)
    tolerance_rdf: float = Field(gt=0.0)
    tolerance_adf: float = Field(gt=0.0)
    tolerance_bar: Pressure = Field(gt=0.0)
    clip_bar: Pressure | None = Field(default=10_000.0, gt=0.0)
    max_divergence: float = Field(default=8.0, gt=0.0)  # of Gauss-Newton steps
    ridge: float = Field(default=1.0e-10, gt=0.0)  # of them too
    descend: bool = False  # as well
    smoothing: float = Field(default=0.0, ge=0.0)  # of the spline
    average_last: int = Field(default=1, gt=0)


class MatchingConfig(RunConfig):
    """Force matching to the model that another preset learns, as a start for this one.

    That model is simulated at every temperature; weights are of squared deviations in eV/Å and
    eV/Å³. The learning rate, that of Muon, falls along a half cosine.
    """

    preset: str
    n_beads: int = Field(gt=0)
    temperatures_kelvin: tuple[Temperature, ...] = Field(min_length=1)
    n_steps: int = Field(gt=0)
    batch_size: int = Field(default=4, gt=0)
    learning_rate: float = Field(gt=0.0)
    forces: float = Field(default=1.0, gt=0.0)
    stress: float = Field(ge=0.0)


class WaterConfig(Config):
    seed: int
    n_beads: int = Field(gt=0)
    temperature_kelvin: Temperature = Field(gt=0.0)
    density: Density = Field(gt=0.0)  # u/Å³
    model: ModelConfig
    matching: MatchingConfig | None = None
    training: TrainingConfig
    validation: RunConfig

    @property
    def kT(self) -> float:
        """eV."""
        return self.temperature_kelvin * units.KELVIN


def start_system(config: WaterConfig, seed: int, n_beads: int | None = None) -> System:
    """Beads on randomly chosen, slightly shaken sites of a cubic lattice, in float32."""
    rng = np.random.default_rng(seed)
    n_beads = n_beads or config.n_beads
    edge = (n_beads * WATER_MASS / config.density) ** (1.0 / 3.0)
    n_sites = int(np.ceil(n_beads ** (1.0 / 3.0)))
    sites = np.stack(np.meshgrid(*[np.arange(n_sites)] * 3, indexing="ij"), -1).reshape(-1, 3)
    chosen = sites[rng.permutation(len(sites))[:n_beads]] * edge / n_sites
    positions = chosen + rng.normal(scale=0.1, size=chosen.shape)
    return make_system(positions, OXYGEN, cell=edge, masses=WATER_MASS, dtype=jnp.float32)


def build_potential(config: ModelConfig) -> Potential:
    prior = soft_repulsion(config.prior)
    if config.network is not None:
        network = dimenet(DimeNetConfig(**config.network.model_dump(exclude={"energy_unit"})))
        return sum_potentials(prior, scaled(network, config.network.energy_unit))
    assert config.spline is not None
    assert config.three_body is not None
    return sum_potentials(prior, pair_spline(config.spline), three_body(config.three_body))


def pair_energy(config: ModelConfig, params: Any, distances: np.ndarray) -> np.ndarray:
    """Energy of two beads, eV, less that of two beads apart."""
    pair = build_potential(config)

    def one(distance: float) -> float:
        positions = np.array([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])
        two = make_system(positions, OXYGEN, masses=WATER_MASS)
        graph = pad_graph(host_graph(two, pair.cutoff), 2, n_atoms=2)
        return float(energy(params, two, graph))

    energy = jax.jit(functools.partial(total_energy, pair.energy))
    return np.array([one(distance) for distance in distances]) - one(pair.cutoff + 1.0)


def structure() -> tuple[Observable, Observable]:
    """RDF and ADF on the bins that predictions and measurements are compared on."""
    return (
        observables.rdf(r_max=10.0, n_bins=300, pairs="all", name="rdf"),
        observables.adf(r_max=ADF_CUTOFF, n_bins=150, name="adf"),
    )


def measured() -> dict[str, np.ndarray]:
    """The measured curves on those bins."""
    r, theta = (np.asarray(observable.axis) for observable in structure())
    pdf = load_measurement("water_ooo_adf").at(theta)
    return {
        "rdf": load_measurement("water_oo_rdf").at(r),
        "adf": pdf / (pdf.sum() * (theta[1] - theta[0])),
    }


def targets(settings: WaterConfig, potential: Potential) -> list[Target]:
    """Measured structure and pressure; tolerances say what counts as equally bad."""
    (rdf, adf), curves, scale = structure(), measured(), settings.training
    pressure = observables.pressure(potential.energy, cutoff=potential.cutoff, kT=settings.kT)
    return [
        Target(observable=rdf, value=curves["rdf"], tolerance=scale.tolerance_rdf),
        Target(observable=adf, value=curves["adf"], tolerance=scale.tolerance_adf),
        Target(
            observable=pressure,
            value=units.BAR,
            tolerance=scale.tolerance_bar * units.BAR,
            clip=None if scale.clip_bar is None else scale.clip_bar / scale.tolerance_bar,
        ),
    ]


def simulation(
    settings: WaterConfig, run: RunConfig, potential: Potential, **options: Any
) -> Simulation:
    """Langevin dynamics at the temperature of the settings."""
    thermostat = langevin(
        run.timestep_fs * units.FEMTOSECOND,
        run.friction_per_ps / units.PICOSECOND,
        settings.kT,
    )
    return Simulation(
        potential.energy,
        thermostat,
        cutoff=potential.cutoff,
        skin=run.skin,
        every=run.every,
        chunk_frames=run.chunk_frames,
        **options,
    )


def update_rule(run: TrainingConfig) -> Update:
    """How parameters follow from reweighted averages."""
    if run.optimizer == "gauss_newton":
        return gauss_newton(
            max_divergence=run.max_divergence,
            ridge=run.ridge,
            keep_fraction=run.keep_fraction,
            descend=run.descend,
        )
    rate = optax.exponential_decay(run.learning_rate, run.n_updates, run.decay)
    adam = optax.adam(rate, b1=run.beta1, b2=run.beta2)
    return first_order(adam, keep_fraction=run.keep_fraction)


def smoothness(config: WaterConfig) -> Callable[[Any], jax.Array] | None:
    """Penalty on second differences of the spline coefficients, in kT."""
    if config.model.spline is None:
        return None
    scale = config.training.smoothing / config.kT

    def penalty(params: Any) -> jax.Array:
        return scale * jnp.ravel(jnp.diff(params[SPLINE]["coefficients"], 2, axis=1))

    return penalty
