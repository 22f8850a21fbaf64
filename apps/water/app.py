"""Learn coarse-grained water from its measured structure and pressure, then simulate with it."""

import datetime
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import figures
import jax
import matching
import numpy as np
import typer
import water

from mosaicmd.difftre import StatePointData, difftre, dynamics_sampler
from mosaicmd.kernel import observables, units
from mosaicmd.kernel.compilation import tune_compiler
from mosaicmd.kernel.config import ConfigError, load_config
from mosaicmd.kernel.metrics import read_metrics
from mosaicmd.kernel.model_files import load_model, save_model
from mosaicmd.kernel.observables import evaluate_frames
from mosaicmd.kernel.observables.transport import diffusion_coefficient
from mosaicmd.kernel.potentials import Potential
from mosaicmd.kernel.replicas import joined_replicas, split_replicas
from mosaicmd.kernel.report import Metric, write_results
from mosaicmd.kernel.run_folders import settings_and_folder
from mosaicmd.kernel.simulation import Simulation
from mosaicmd.kernel.training import averaged_params, tail_average, train
from mosaicmd.kernel.trajectory import StatePoint, Trajectory

HERE = Path(__file__).parent
SQUARE_METRE_PER_SECOND = 1.0e20 / units.SECOND
SOPER = "Soper & Benmore, PRL 101, 065502 (2008)"

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


class Validation(NamedTuple):
    """Averages of one simulation with one set of parameters."""

    values: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]
    diffusion: tuple[float, float]  # value and error, m²/s
    pressure_series: np.ndarray  # bar


@app.callback()
def main() -> None:
    tune_compiler()
    jax.config.update("jax_default_matmul_precision", "float32")
    jax.config.update("jax_enable_x64", True)


Preset = Annotated[str, typer.Option(help="settings in config/PRESET.yaml")]
Settings = Annotated[Path | None, typer.Option(help="settings file instead of a preset")]
Out = Annotated[Path | None, typer.Option(help="where results go [runs/water-PRESET]")]


@app.command("train")
def train_model(preset: Preset = "quick", config: Settings = None, out: Out = None) -> None:
    """Learn the potential and write it to OUT/model; the same command again resumes."""
    trained(*prepare(preset, config, out))


@app.command()
def run(preset: Preset = "quick", config: Settings = None, out: Out = None) -> None:
    """Learn, simulate with the result and report; the same command again resumes."""
    settings, out = prepare(preset, config, out)
    potential, start, learned = trained(settings, out)
    after = validate(settings, potential, learned, out / "validation")
    before = validate(settings, potential, start, out / "before", fraction=0.1)
    metrics = compare(settings, learned, before, after)
    history = read_metrics(out / "training" / "metrics.jsonl")
    write_results(out / "results.json", metrics, settings=settings.model_dump(mode="json"))
    figures.write_page(out, settings, (start, learned), (before, after), metrics, history)
    for name, metric in metrics.items():
        typer.echo(f"{name:24s} {metric.value:12.5g} ± {metric.error or 0.0:.2g} {metric.unit}")
    typer.echo(f"report: {out / 'report.html'}")


def trained(settings: water.WaterConfig, out: Path) -> tuple[Potential, Any, Any]:
    """The potential with the parameters that learning starts from, and those it leads to."""
    potential = water.build_potential(settings.model)
    start = potential.init(jax.random.key(settings.seed))
    if settings.matching is not None:
        start = matched(settings, potential, start, out)
    if not (out / "model").exists():
        learned = learn(settings, potential, start, out)
        save_model(out / "model", potential, learned, training=settings.model_dump(mode="json"))
    potential, learned = load_model(out / "model")
    return potential, start, learned


def prepare(preset: str, config: Path | None, out: Path | None) -> tuple[water.WaterConfig, Path]:
    """Checked settings, and an output directory that belongs to them."""
    try:
        return settings_and_folder(
            water.WaterConfig, HERE / "config", preset=preset, config=config, out=out, name="water"
        )
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def matched(settings: water.WaterConfig, potential: Potential, params: Any, out: Path) -> Any:
    """Parameters that have the forces of the model of another preset, which is learned first."""
    assert settings.matching is not None
    folder = out / "matching"
    if not (folder / "model").exists():
        preset = settings.matching.preset
        other = load_config(water.WaterConfig, HERE / "config" / f"{preset}.yaml")
        teacher, _, learned = trained(other, out / preset)
        found = matching.match(settings, potential, params, (teacher, learned), folder)
        save_model(folder / "model", potential, found)
    return load_model(folder / "model")[1]


def learn(settings: water.WaterConfig, potential: Potential, params: Any, out: Path) -> Any:
    """DiffTRe; the mean of the last iterates."""
    run, kT = settings.training, settings.kT
    key = jax.random.key(settings.seed)
    dynamics = water.simulation(settings, run, potential)
    system = water.start_system(settings, settings.seed)
    announce(settings, dynamics, params, system)
    sampler = dynamics_sampler(
        dynamics,
        system,
        StatePoint(kT, units.BAR),
        n_equilibration=run.steps(run.equilibration_ps),
        n_production=run.steps(run.production_ps),
        key=key,
        replicas=run.replicas,
        directory=out / "training" / "sampling",
        progress=None,
    )
    measured = StatePointData(
        name="ambient", sampler=sampler, targets=water.targets(settings, potential)
    )
    algorithm = difftre(
        potential.energy,
        potential.cutoff,
        [measured],
        water.update_rule(run),
        penalty=water.smoothness(settings),
    )
    state = train(
        tail_average(algorithm, run.average_last),
        params,
        run.n_updates,
        directory=out / "training",
        description="learning water",
        show="loss",
    )
    return averaged_params(state)


def announce(settings: water.WaterConfig, dynamics: Simulation, params: Any, system: Any) -> None:
    """Say how long molecular dynamics will take, from a few steps of it once it is compiled."""
    run = settings.training
    state = dynamics.start(jax.random.key(0), params, system, replicas=run.replicas)
    state, _ = dynamics.run(params, state, run.every, progress=False)
    began = time.monotonic()
    dynamics.run(params, state, run.every, progress=False)
    per_step = (time.monotonic() - began) / run.every
    steps = run.steps(run.equilibration_ps) + run.steps(run.production_ps)
    update, total = (
        datetime.timedelta(seconds=round(n * steps * per_step)) for n in (1, run.n_updates)
    )
    typer.echo(
        f"learning on {jax.default_backend()}: {run.n_updates} updates of about {update} of "
        f"molecular dynamics, {total} in all; a killed run resumes",
        err=True,
    )


def validate(
    settings: water.WaterConfig,
    potential: Potential,
    params: Any,
    directory: Path,
    *,
    fraction: float = 1.0,
) -> Validation:
    """A run from another start structure and seed, with error bars."""
    run, kT = settings.validation, settings.kT
    pressure = observables.pressure(potential.energy, cutoff=potential.cutoff, kT=kT)

    def observe(params: Any, system: Any, graph: Any, momenta: Any) -> dict[str, jax.Array]:
        return {"pressure": pressure.per_frame(params, system, graph, momenta)}

    dynamics = water.simulation(settings, run, potential, observe=observe)
    seed = settings.seed + 1
    key, start = jax.random.key(seed), water.start_system(settings, seed)
    state = dynamics.start(key, params, start, replicas=run.replicas)
    skipped = run.steps(run.equilibration_ps)
    total = skipped + run.steps(run.production_ps * fraction)
    _, trajectory = dynamics.run(params, state, total, directory=directory)
    return analyse(trajectory.skip(skipped // run.every), params, pressure)


def analyse(trajectory: Trajectory, params: Any, pressure: Any) -> Validation:
    shapes = [*water.structure(), observables.tetrahedral_order(r_max=6.0, name="tetrahedral")]
    runs = [trajectory]
    if trajectory.systems.positions.ndim == 4:
        runs, trajectory = split_replicas(trajectory), joined_replicas(trajectory)
    found = evaluate_frames(shapes, params, trajectory)
    averages = {shape.name: shape.estimate(found[shape.name]) for shape in shapes}
    averages["pressure"] = pressure(trajectory)
    return Validation(
        {name: np.asarray(value) for name, (value, _) in averages.items()},
        {name: np.asarray(information.error) for name, (_, information) in averages.items()},
        diffusion(runs),
        np.asarray(trajectory.quantities["pressure"]) / units.BAR,
    )


def diffusion(runs: list[Trajectory]) -> tuple[float, float]:
    """The mean over runs and its standard error, m²/s."""
    found = []
    for run in runs:
        assert run.time is not None
        longest = min(10.0 * units.PICOSECOND, 0.5 * float(run.time[-1] - run.time[0]))
        value, info = diffusion_coefficient(run, fit=(0.2 * longest, longest))
        found.append([float(value), float(info.error)])
    values, errors = np.array(found).T / SQUARE_METRE_PER_SECOND
    return float(values.mean()), float(np.sqrt(np.sum(errors**2)) / len(runs))


def measured_diffusion(temperature_kelvin: float) -> float:
    """Self-diffusion of liquid water between 0 and 100 °C, m²/s, by the fit of its source."""
    return 1.635e-8 * (temperature_kelvin / 215.05 - 1.0) ** 2.063


def compare(
    settings: water.WaterConfig, learned: Any, before: Validation, after: Validation
) -> dict[str, Metric]:
    """Figures of merit against experiment."""
    metrics = {}
    for name, label in (("rdf", "O-O g(r)"), ("adf", "O-O-O angles")):
        for tag, run in (("", after), ("_initial", before)):
            value, error = mean_square_error(run, name)
            metrics[f"{name}_mse{tag}"] = Metric(value, "", error, 0.0, f"{SOPER}: {label}")
    for tag, run in (("", after), ("_initial", before)):
        metrics[f"pressure_bar{tag}"] = Metric(
            float(run.values["pressure"]) / units.BAR,
            "bar",
            float(run.errors["pressure"]) / units.BAR,
            1.0,
            "ambient pressure",
        )
    metrics["tetrahedral_order"] = Metric(
        float(after.values["tetrahedral"]),
        "",
        float(after.errors["tetrahedral"]),
        0.576,
        "from diffraction, as quoted by Thaler & Zavadlav, Nat. Commun. 12, 6884 (2021)",
    )
    metrics["diffusion"] = Metric(
        after.diffusion[0],
        "m²/s",
        after.diffusion[1],
        measured_diffusion(settings.temperature_kelvin),
        "Holz, Heil & Sacco, PCCP 2, 4740 (2000); coarse-graining speeds dynamics up",
    )
    r = np.linspace(2.0, 2.4, 41)
    force = -np.diff(water.pair_energy(settings.model, learned, r)) / np.diff(r)
    metrics["pair_force_min_below_2p4_A"] = Metric(
        float(force.min()), "eV/Å", source="repulsive if positive"
    )
    return metrics


def mean_square_error(run: Validation, name: str) -> tuple[float, float]:
    """Mean square deviation from the measurement, and its standard error.

    The error propagates those of the bins as if bins were independent.
    """
    deviation = run.values[name] - water.measured()[name]
    error = 2.0 * np.sqrt(np.sum((deviation * run.errors[name]) ** 2)) / deviation.size
    return float(np.mean(deviation**2)), float(error)


if __name__ == "__main__":
    app()
