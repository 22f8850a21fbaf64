"""The problem: beads of water, the potential that is learned, and what was measured."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pydantic import Field

from mosaicmd.difftre import Target, Update, first_order, gauss_newton, load_measurement
from mosaicmd.gnn_models import (
    PairSplineConfig,
    SoftRepulsionConfig,
    ThreeBodyConfig,
    pair_spline,
    soft_repulsion,
    three_body,
)
from mosaicmd.kernel import observables, units
from mosaicmd.kernel.config import Config, Density, Pressure, Temperature, Time
from mosaicmd.kernel.observables import Observable
from mosaicmd.kernel.potentials import Potential, sum_potentials
from mosaicmd.kernel.systems import System, make_system

OXYGEN = 8
WATER_MASS = 18.01528  # u
ADF_CUTOFF = 3.18  # Å, that of the measurement
PRIOR, SPLINE, THREE_BODY = range(3)  # terms of the potential, in order


class ModelConfig(Config):
    prior: SoftRepulsionConfig
    spline: PairSplineConfig
    three_body: ThreeBodyConfig


class RunConfig(Config):
    """How to simulate; ``friction_per_ps`` is that of the Langevin thermostat."""

    timestep_fs: Time = Field(gt=0.0)
    equilibration_ps: Time = Field(ge=0.0)
    production_ps: Time = Field(gt=0.0)
    frame_ps: Time = Field(gt=0.0)
    friction_per_ps: float = Field(default=1.0, gt=0.0)
    skin: float = Field(default=0.8, ge=0.0)

    @property
    def every(self) -> int:
        """Steps between frames."""
        return max(1, round(1000.0 * self.frame_ps / self.timestep_fs))

    def steps(self, duration_ps: float) -> int:
        """Steps in a duration, rounded up to whole frames."""
        frames = int(np.ceil(1000.0 * duration_ps / self.timestep_fs / self.every - 1e-9))
        return frames * self.every


class TrainingConfig(RunConfig):
    """``learning_rate`` (which falls tenfold over the run) and ``beta2`` are those of Adam.

    ``keep_fraction`` is the effective share of the frames that an update must leave.
    """

    optimizer: Literal["gauss_newton", "adam"] = "gauss_newton"
    learning_rate: float = Field(default=2.0e-3, gt=0.0)
    beta2: float = Field(default=0.999, gt=0.0, lt=1.0)
    keep_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    n_updates: int = Field(gt=0)
    tolerance_rdf: float = Field(gt=0.0)
    tolerance_adf: float = Field(gt=0.0)
    tolerance_bar: Pressure = Field(gt=0.0)
    max_divergence: float = Field(gt=0.0)
    smoothing: float = Field(ge=0.0)
    average_last: int = Field(gt=0)


class WaterConfig(Config):
    seed: int
    n_beads: int = Field(gt=0)
    temperature_kelvin: Temperature = Field(gt=0.0)
    density: Density = Field(gt=0.0)  # u/Å³
    model: ModelConfig
    training: TrainingConfig
    validation: RunConfig

    @property
    def kT(self) -> float:
        """eV."""
        return self.temperature_kelvin * units.KELVIN


def start_system(config: WaterConfig, seed: int) -> System:
    """Beads on randomly chosen, slightly shaken sites of a cubic lattice, in float32."""
    rng = np.random.default_rng(seed)
    edge = (config.n_beads * WATER_MASS / config.density) ** (1.0 / 3.0)
    n_sites = int(np.ceil(config.n_beads ** (1.0 / 3.0)))
    sites = np.stack(np.meshgrid(*[np.arange(n_sites)] * 3, indexing="ij"), -1).reshape(-1, 3)
    chosen = sites[rng.permutation(len(sites))[: config.n_beads]] * edge / n_sites
    positions = chosen + rng.normal(scale=0.1, size=chosen.shape)
    return make_system(positions, OXYGEN, cell=edge, masses=WATER_MASS, dtype=jnp.float32)


def build_potential(config: ModelConfig) -> Potential:
    return sum_potentials(
        soft_repulsion(config.prior), pair_spline(config.spline), three_body(config.three_body)
    )


def pair_energy(config: ModelConfig, params: Any, distances: np.ndarray) -> np.ndarray:
    """Prior and spline together, eV: the energy of two beads."""
    from mosaicmd.kernel.graphs import host_graph
    from mosaicmd.kernel.potentials import total_energy

    pair = sum_potentials(soft_repulsion(config.prior), pair_spline(config.spline))

    def one(distance: float) -> float:
        positions = np.array([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])
        two = make_system(positions, OXYGEN, masses=WATER_MASS)
        graph = host_graph(two, pair.cutoff)
        return float(total_energy(pair.energy, params[:THREE_BODY], two, graph))

    return np.array([one(distance) for distance in distances])


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
    """Measured structure and pressure; tolerances say what counts as equally bad.

    Deviations of the pressure beyond 10 kbar count linearly, lest the first steps see
    nothing else.
    """
    (rdf, adf), curves, scale = structure(), measured(), settings.training
    pressure = observables.pressure(potential.energy, cutoff=potential.cutoff, kT=settings.kT)
    return [
        Target(observable=rdf, value=curves["rdf"], tolerance=scale.tolerance_rdf),
        Target(observable=adf, value=curves["adf"], tolerance=scale.tolerance_adf),
        Target(
            observable=pressure,
            value=units.BAR,
            tolerance=scale.tolerance_bar * units.BAR,
            clip=10_000.0 / scale.tolerance_bar,
        ),
    ]


def update_rule(run: TrainingConfig) -> Update:
    """How parameters follow from reweighted averages."""
    if run.optimizer == "gauss_newton":
        return gauss_newton(max_divergence=run.max_divergence, keep_fraction=run.keep_fraction)
    rate = optax.exponential_decay(run.learning_rate, run.n_updates, 0.1)
    return first_order(optax.adam(rate, b2=run.beta2), keep_fraction=run.keep_fraction)


def smoothness(config: WaterConfig) -> Any:
    """Penalty on second differences of the spline coefficients, in kT."""
    scale = config.training.smoothing / config.kT

    def penalty(params: Any) -> jax.Array:
        return scale * jnp.ravel(jnp.diff(params[SPLINE]["coefficients"], 2, axis=1))

    return penalty
