"""Learn titanium from labelled structures, from experiment, and from both; compare the three."""

from pathlib import Path
from typing import Annotated, Any

import figures
import jax
import numpy as np
import routine
import titanium
import typer
import validation

from mosaicmd.kernel.compilation import tune_compiler
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.metrics import read_metrics
from mosaicmd.kernel.model_files import load_model, save_model
from mosaicmd.kernel.potentials import Potential
from mosaicmd.kernel.report import Metric, write_results
from mosaicmd.kernel.run_folders import settings_and_folder

HERE = Path(__file__).parent
MODELS = ("dft", "exp", "fused")
FISHER = "Fisher & Renken, Phys. Rev. 135, A482 (1964)"

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    tune_compiler()
    jax.config.update("jax_enable_x64", True)


Preset = Annotated[str, typer.Option(help="settings in config/PRESET.yaml")]
Settings = Annotated[Path | None, typer.Option(help="settings file instead of a preset")]
Out = Annotated[Path | None, typer.Option(help="where results go [runs/titanium-PRESET]")]


@app.command("train")
def train_models(preset: Preset = "quick", config: Settings = None, out: Out = None) -> None:
    """Learn the models and write them to OUT/model-*; the same command again resumes."""
    trained(*prepare(preset, config, out))


@app.command()
def run(preset: Preset = "quick", config: Settings = None, out: Out = None) -> None:
    """Learn, simulate with the results and report; the same command again resumes."""
    settings, out = prepare(preset, config, out)
    potential, learned = trained(settings, out)
    moving = validation.dynamics(settings, potential)
    found = {
        name: validation.validate(settings, potential, moving, params, out / "validation" / name)
        for name, params in learned.items()
    }
    metrics = compare(settings, found)
    write_results(out / "results.json", metrics, settings=settings.model_dump(mode="json"))
    history = {name: read_metrics(out / name / "metrics.jsonl") for name in MODELS}
    figures.write_page(out, settings, found, metrics, history)
    for name, metric in metrics.items():
        typer.echo(f"{name:28s} {metric.value:12.5g} ± {metric.error or 0.0:.2g} {metric.unit}")
    typer.echo(f"report: {out / 'report.html'}")


def prepare(
    preset: str, config: Path | None, out: Path | None
) -> tuple[titanium.TitaniumConfig, Path]:
    """Checked settings, and an output directory that belongs to them."""
    folders = {"preset": preset, "config": config, "out": out, "name": "titanium"}
    try:
        return settings_and_folder(titanium.TitaniumConfig, HERE / "config", **folders)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def trained(settings: titanium.TitaniumConfig, out: Path) -> tuple[Potential, dict[str, Any]]:
    """The potential with the parameters of the three models."""
    potential = titanium.build_potential(settings.model)
    folders = {name: out / f"model-{name}" for name in MODELS}
    if not all(folder.exists() for folder in folders.values()):
        record = settings.model_dump(mode="json")
        for name, params in routine.learn(settings, potential, out).items():
            save_model(folders[name], potential, params, training=record)
    return potential, {name: load_model(folders[name])[1] for name in MODELS}


def compare(
    settings: titanium.TitaniumConfig, found: dict[str, validation.Findings]
) -> dict[str, Metric]:
    """Figures of merit of all models."""
    metrics, known = {}, settings.labels.reference
    for name, of in found.items():
        for group, chosen in (("heldout", settings.heldout_kelvin), ("learned", None)):
            kelvin = settings.experiment.temperatures_kelvin if chosen is None else chosen
            value, error = deviation(of.elasticity, tuple(kelvin))
            if np.isfinite(value):
                metrics[f"elastic_mape_{group}_{name}"] = Metric(value, "%", error, 0.0, FISHER)
        broken = [
            int(np.isnan(of_run.values[:, 0]).sum()) for of_run in (of.elasticity, of.expansion)
        ]
        metrics[f"broken_runs_{name}"] = Metric(
            float(sum(broken)), "", None, 0.0, "simulations that exploded and are left out"
        )
        pressures = np.abs(of.elasticity.values[:, -1])
        if np.isfinite(pressures).any():
            worst = int(np.nanargmax(pressures))
            value, error = float(pressures[worst]), float(of.elasticity.errors[worst, -1])
            metrics[f"pressure_max_abs_{name}"] = Metric(value, "GPa", error, 0.0, "ambient")
        errors = of.labels["all"]
        for label, unit, scale in (
            ("energy", "mev_per_atom", 1.0),
            ("forces", "mev_per_angstrom", 1e-3),
            ("stress", "gpa", 1.0),
        ):
            value = scale * errors[f"rmse_{label}_{unit}"]
            shown = {"energy": "meV/atom", "forces": "eV/Å", "stress": "GPa"}[label]
            short = "force" if label == "forces" else label
            metrics[f"{short}_rmse_{name}"] = Metric(value, shown, None, 0.0, known.source)
        if of.bcc_mev is not None:
            about = {"reference": known.bcc_mev, "source": known.source}
            metrics[f"bcc_above_hcp_{name}"] = Metric(of.bcc_mev, "meV", **about)
        for axis, letter in enumerate("ac"):
            value, error = slope(of.expansion, axis)
            reference, _ = slope(measured_cells(of.expansion.kelvin), axis)
            if np.isfinite(value):
                metrics[f"expansion_{letter}_{name}"] = Metric(
                    value, "1e-6/K", error, reference, "the measured cells"
                )
        metrics[f"lowest_phonon_{name}"] = Metric(float(of.branches[1].min()), "THz")
        metrics[f"stable_{name}"] = Metric(of.stable_ps, "ps")
        metrics[f"wandering_{name}"] = Metric(min(of.wandering, 99.0), "neighbor distances")
    return metrics


def deviation(series: validation.Series, kelvin: tuple[float, ...]) -> tuple[float, float]:
    """Mean absolute deviation of the elastic constants from measured ones, %, and its error.

    Of the simulations that did not break; NaN if all of them did.
    """
    there = np.isfinite(series.values[:, 0])
    rows = [k for k, t in enumerate(series.kelvin) if t in kelvin and there[k]]
    table = titanium.measured()
    if not rows:
        return float("nan"), float("nan")
    wanted = np.array([table[float(series.kelvin[k])].constants for k in rows])
    relative = (series.values[rows, :5] - wanted) / wanted
    errors = series.errors[rows, :5] / wanted
    return 100.0 * float(np.mean(np.abs(relative))), 100.0 * float(
        np.sqrt(np.sum(errors**2)) / errors.size
    )


def measured_cells(kelvin: np.ndarray) -> validation.Series:
    table = titanium.measured()
    values = np.array([[table[float(t)].a, table[float(t)].c] for t in kelvin])
    return validation.Series(kelvin, values, np.zeros_like(values))


def slope(series: validation.Series, axis: int) -> tuple[float, float]:
    """Linear expansion from the lowest to the highest temperature, 1e-6/K, and its error."""
    low, high = series.values[0, axis], series.values[-1, axis]
    span = float(series.kelvin[-1] - series.kelvin[0])
    error = float(np.hypot(series.errors[0, axis], series.errors[-1, axis]))
    return 1e6 * float(high - low) / low / span, 1e6 * error / float(low) / span


if __name__ == "__main__":
    app()
