"""Learn a potential of diamond from its measured elastic constants, then validate it."""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import diamond
import figures
import jax
import matching
import numpy as np
import typer

from mosaicmd.difftre import StatePointData, difftre, dynamics_sampler, gauss_newton
from mosaicmd.kernel import units
from mosaicmd.kernel.compilation import tune_compiler
from mosaicmd.kernel.config import ConfigError, load_config
from mosaicmd.kernel.integrators import langevin
from mosaicmd.kernel.metrics import read_metrics
from mosaicmd.kernel.model_files import load_model, save_model
from mosaicmd.kernel.phonons import force_constants, frequencies_thz
from mosaicmd.kernel.potentials import Potential
from mosaicmd.kernel.replicas import joined_replicas
from mosaicmd.kernel.report import Metric, write_results
from mosaicmd.kernel.run_folders import settings_and_folder
from mosaicmd.kernel.simulation import Simulation
from mosaicmd.kernel.training import averaged_params, tail_average, train
from mosaicmd.kernel.trajectory import StatePoint

HERE = Path(__file__).parent
RAMAN_THZ = 39.947  # 1332.5 /cm
SOLIN = "Solin & Ramdas, Phys. Rev. B 1, 1687 (1970); not learned from"

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


class Validation(NamedTuple):
    """Averages of one simulation, GPa: C11, C12, C44, pressure; six stresses."""

    elasticity: np.ndarray
    errors: np.ndarray
    stress: np.ndarray
    stress_errors: np.ndarray


@app.callback()
def main() -> None:
    tune_compiler()
    jax.config.update("jax_enable_x64", True)


Preset = Annotated[str, typer.Option(help="settings in config/PRESET.yaml")]
Settings = Annotated[Path | None, typer.Option(help="settings file instead of a preset")]
Out = Annotated[Path | None, typer.Option(help="where results go [runs/diamond-PRESET]")]


@app.command("train")
def train_model(preset: Preset = "quick", config: Settings = None, out: Out = None) -> None:
    """Learn the potential and write it to OUT/model; the same command again resumes."""
    trained(*prepare(preset, config, out))


@app.command()
def run(preset: Preset = "quick", config: Settings = None, out: Out = None) -> None:
    """Learn, simulate with the result and report; the same command again resumes."""
    settings, out = prepare(preset, config, out)
    potential, learned = trained(settings, out)
    after = validate(settings, potential, learned, out / "validation")
    branches = phonons(settings, potential, learned)
    metrics = compare(after, branches)
    write_results(out / "results.json", metrics, settings=settings.model_dump(mode="json"))
    history = read_metrics(out / "training" / "metrics.jsonl")
    figures.write_page(out, settings, (potential, learned), after, metrics, history, branches)
    for name, metric in metrics.items():
        typer.echo(f"{name:24s} {metric.value:12.5g} ± {metric.error or 0.0:.2g} {metric.unit}")
    typer.echo(f"report: {out / 'report.html'}")


def prepare(
    preset: str, config: Path | None, out: Path | None
) -> tuple[diamond.DiamondConfig, Path]:
    """Checked settings, and an output directory that belongs to them."""
    try:
        return settings_and_folder(
            diamond.DiamondConfig,
            HERE / "config",
            preset=preset,
            config=config,
            out=out,
            name="diamond",
        )
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def trained(settings: diamond.DiamondConfig, out: Path) -> tuple[Potential, Any]:
    """The potential with its learned parameters."""
    if not (out / "model").exists():
        potential = diamond.build_potential(settings.model)
        start = potential.init(jax.random.key(settings.seed))
        if settings.matching is not None:
            start = matched(settings, potential, start, out)
        learned = learn(settings, potential, start, out)
        save_model(out / "model", potential, learned, training=settings.model_dump(mode="json"))
    return load_model(out / "model")


def matched(settings: diamond.DiamondConfig, potential: Potential, params: Any, out: Path) -> Any:
    """Parameters that have the forces of the model of another preset, which is learned first."""
    assert settings.matching is not None
    folder = out / "matching"
    if not (folder / "model").exists():
        preset = settings.matching.preset
        other = load_config(diamond.DiamondConfig, HERE / "config" / f"{preset}.yaml")
        teacher = trained(other, out / preset)
        found = matching.match(settings, potential, params, teacher, folder / "training")
        save_model(folder / "model", potential, found)
    return load_model(folder / "model")[1]


def learn(settings: diamond.DiamondConfig, potential: Potential, params: Any, out: Path) -> Any:
    """DiffTRe; the mean of the last iterates."""
    run = settings.training
    sampler = dynamics_sampler(
        simulation(settings, run, potential),
        diamond.crystal(settings),
        StatePoint(settings.kT),
        n_equilibration=run.every * run.n_equilibration,
        n_production=run.every * run.n_frames,
        key=jax.random.key(settings.seed),
        replicas=run.replicas,
        directory=out / "training" / "sampling",
        progress=None,
    )
    target = diamond.target(settings, potential)
    algorithm = difftre(
        potential.energy,
        potential.cutoff,
        [
            StatePointData(
                name="ambient", sampler=sampler, targets=[target], direct_every=run.direct_every
            )
        ],
        gauss_newton(
            max_divergence=run.max_divergence,
            ridge=run.ridge,
            keep_fraction=run.keep_fraction,
            descend=run.descend,
        ),
        reuse_fraction=1.0,  # new frames for every update, so that averaged iterates differ
    )
    state = train(
        tail_average(algorithm, run.average_last),
        params,
        run.n_updates,
        directory=out / "training",
        description="learning diamond",
        show="loss",
    )
    return averaged_params(state)


def simulation(
    settings: diamond.DiamondConfig, run: diamond.RunConfig, potential: Potential, **options: Any
) -> Simulation:
    thermostat = langevin(
        run.timestep_fs * units.FEMTOSECOND, run.friction_per_ps / units.PICOSECOND, settings.kT
    )
    return Simulation(
        potential.energy,
        thermostat,
        cutoff=potential.cutoff,
        skin=run.skin,
        every=run.every,
        chunk_frames=100,
        **options,
    )


def validate(
    settings: diamond.DiamondConfig, potential: Potential, params: Any, directory: Path
) -> Validation:
    """A longer run with another seed, with error bars."""
    run, observable = settings.validation, diamond.elasticity(settings, potential)
    dynamics = simulation(settings, run, potential, observe=observable)
    start = diamond.crystal(settings)
    key = jax.random.key(settings.seed + 1)
    state = dynamics.start(key, params, start, replicas=run.replicas)
    total = run.every * (run.n_equilibration + run.n_frames)
    _, trajectory = dynamics.run(params, state, total, directory=directory)
    trajectory = trajectory.skip(run.n_equilibration)
    if run.replicas is not None:
        trajectory = joined_replicas(trajectory)
    values = trajectory.quantities[observable.name]
    found, info = observable.estimate(values)
    stress, stress_info = diamond.stresses(settings, observable).estimate(values)
    return Validation(*(np.asarray(x) for x in (found, info.error, stress, stress_info.error)))


def phonons(
    settings: diamond.DiamondConfig, potential: Potential, params: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Harmonic frequencies (THz) along Gamma-X of the cubic cell, and where (0 to 1)."""
    import ase.build

    from mosaicmd.kernel.systems import from_ase

    primitive = from_ase(ase.build.bulk("C", "diamond", a=settings.edge))
    constants = force_constants(
        potential.energy, params, primitive, (4, 4, 4), cutoff=potential.cutoff
    )
    along = np.linspace(0.0, 1.0, 41)
    wave_vectors = 0.5 * along[:, None] * np.array([[0.0, 1.0, 1.0]])
    return along, np.asarray(frequencies_thz(constants, wave_vectors))


def compare(after: Validation, branches: tuple[np.ndarray, np.ndarray]) -> dict[str, Metric]:
    """Figures of merit against experiment."""
    metrics = {}
    for k, (name, measured) in enumerate(diamond.MEASURED_GPA.items()):
        value, error = float(after.elasticity[k]), float(after.errors[k])
        metrics[name] = Metric(value, "GPa", error, measured, diamond.MCSKIMIN)
    pressure, error = float(after.elasticity[3]), float(after.errors[3])
    metrics["pressure"] = Metric(pressure, "GPa", error, 0.0, "ambient, in the measured cell")
    worst = int(np.argmax(np.abs(after.stress)))
    metrics["stress_max_abs"] = Metric(
        float(np.abs(after.stress[worst])),
        "GPa",
        float(after.stress_errors[worst]),
        0.0,
        "ambient, in the measured cell",
    )
    raman = float(branches[1][0].max())
    metrics["raman_thz"] = Metric(raman, "THz", None, RAMAN_THZ, SOLIN)
    return metrics


if __name__ == "__main__":
    app()
