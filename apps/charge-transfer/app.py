"""Clusters whose energy depends on a net charge that no atom sees: where local models fail."""

import functools
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import figures
import jax
import typer
from dynamics import Conservation, conservation, cost
from evaluation import (
    Answers,
    Curves,
    Squares,
    answers,
    curve_deviations,
    curves,
    labels,
    minima,
    removal_slope,
    rmse,
    squares,
    taken_for_others,
)
from published import DATA, ERRORS
from settings import ChargeTransferConfig, SetConfig, find
from trainings import divide, trained

from mosaicmd.kernel.compilation import tune_compiler
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.data import DataError, read_structures
from mosaicmd.kernel.potentials import Params, Potential
from mosaicmd.kernel.registry import DataSetError
from mosaicmd.kernel.report import Metric, write_results
from mosaicmd.kernel.run_folders import claim, settings_and_folder

HERE = Path(__file__).parent
UNITS = {"energy": "meV/atom", "forces": "meV/Å", "charges": "me"}

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


class Outcome(NamedTuple):
    """Everything that the models of one set showed."""

    n_learned: int
    frames: list[Any]  # held out
    given: Answers
    models: dict[str, tuple[Potential, Params]]  # of the first seed
    predicted: dict[str, list[Answers]]  # by model, one per seed
    squares: dict[str, Squares]
    curves: Curves | None


@app.callback()
def main() -> None:
    tune_compiler()
    jax.config.update("jax_enable_x64", True)


Preset = Annotated[str, typer.Option(help="settings in config/PRESET.yaml")]
Settings = Annotated[Path | None, typer.Option(help="settings file instead of a preset")]
Out = Annotated[Path | None, typer.Option(help="where results go [runs/charge-transfer-PRESET]")]


@app.command()
def run(preset: Preset = "quick", config: Settings = None, out: Out = None) -> None:
    """Train, compare and report; the same command again resumes."""
    folders = {"preset": preset, "config": config, "out": out, "name": "charge-transfer"}
    try:
        settings, out = settings_and_folder(ChargeTransferConfig, HERE / "config", **folders)
        out = out.resolve()
        base = HERE if config is None else config.resolve().parent
        files, skipped = inputs(settings, base)
        claim(out, settings, files)
        outcomes = {
            name: learned(settings, name, one, files, out)
            for name, one in settings.sets.items()
            if name not in skipped
        }
    except (ConfigError, DataError) as error:
        raise typer.BadParameter(str(error)) from None
    moved = moving(settings, outcomes, out)
    costs = priced(settings, outcomes)
    metrics = figures_of_merit(settings, outcomes, moved, costs)
    write_results(
        out / "results.json",
        metrics,
        settings=settings.model_dump(mode="json"),
        skipped=skipped,
        sets={name: summary(settings.sets[name], one) for name, one in outcomes.items()},
        seconds_per_step={str(n): row for n, row in costs.items()},
    )
    figures.write_page(out, settings, outcomes, metrics, moved, costs, skipped)
    for name, metric in metrics.items():
        typer.echo(f"{name:40s} {metric.value:12.5g} ± {metric.error or 0.0:.2g} {metric.unit}")
    typer.echo(f"report: {out / 'report.html'}")


def inputs(settings: ChargeTransferConfig, base: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Files by ``SET`` and ``SET-curves``, and why sets are skipped that cannot be had."""
    files, skipped = {}, {}
    for name, one in settings.sets.items():
        try:
            files[name] = find(one.file, base, HERE)
            if one.curves is not None:
                files[f"{name}-curves"] = find(one.curves, base, HERE)
        except DataSetError as error:
            skipped[name] = str(error)
            typer.echo(f"{name} is skipped: {error}")
    return files, skipped


def learned(
    settings: ChargeTransferConfig, name: str, one: SetConfig, files: dict[str, Path], out: Path
) -> Outcome:
    """Train the models of a set and ask them about what was held out."""
    parts = divide(one, files[name], out / "data", name, settings.seed)
    frames: list[Any] = read_structures(parts.test)
    given = labels(frames)
    models, predicted = {}, {}
    for model, fit in one.models.items():
        every = [
            trained(one, model, fit, parts, out / "models" / f"{name}-{model}-{k}", k)
            for k in range(one.seeds)
        ]
        models[model] = every[0]
        predicted[model] = [answers(each, frames) for each in every]
    found = None
    if f"{name}-curves" in files:
        ask = {model: functools.partial(answers, each) for model, each in models.items()}
        found = curves(files[f"{name}-curves"], ask)
    deviations = {model: squares(some, given) for model, some in predicted.items()}
    n_learned = len(read_structures(parts.train))
    return Outcome(n_learned, frames, given, models, predicted, deviations, found)


def moving(
    settings: ChargeTransferConfig, outcomes: dict[str, Outcome], out: Path
) -> dict[str, Conservation]:
    """Dynamics of the charged structure of least energy per atom that was held out, by set."""
    if settings.dynamics is None:
        return {}
    found = {}
    for name in settings.dynamics.sets:
        if name in outcomes:
            one = outcomes[name]
            charged = [k for k, a in enumerate(one.frames) if a.info["total_charge"] != 0]
            start = one.frames[min(charged, key=lambda k, one=one: one.given.energies[k])]
            folder = out / "dynamics" / name
            model = one.models["celli"]
            found[name] = conservation(settings.dynamics, model, start, folder, settings.seed)
    return found


def priced(
    settings: ChargeTransferConfig, outcomes: dict[str, Outcome]
) -> dict[int, dict[str, tuple[float, float]]]:
    """Seconds per step of `celli` and `mace`, by number of atoms."""
    if settings.cost is None or settings.cost.set not in outcomes:
        return {}
    one = outcomes[settings.cost.set]
    models = {name: one.models[name] for name in ("celli", "mace")}
    return cost(settings.cost, models, one.frames)


def figures_of_merit(
    settings: ChargeTransferConfig,
    outcomes: dict[str, Outcome],
    moved: dict[str, Conservation],
    costs: dict[int, dict[str, tuple[float, float]]],
) -> dict[str, Metric]:
    """Errors by model, those of the headline sets together first, and what else was measured."""
    metrics = {}
    headline = [outcomes[name].squares for name in settings.headline if name in outcomes]
    shared = [model for model in figures.LABELS if all(model in one for one in headline)]
    if headline:
        for model in shared:
            value, error = rmse(*(one[model].energy for one in headline))
            metrics[f"energy_rmse_{model}"] = Metric(value, UNITS["energy"], error)
        if {"local", "celli"} <= set(shared):
            metrics["energy_rmse_ratio"] = quotient(
                metrics["energy_rmse_celli"], metrics["energy_rmse_local"], reference=0.2
            )
    for name, one in outcomes.items():
        benchmark = settings.sets[name].published
        for model, deviations in one.squares.items():
            like = -1 if model == "local" else 0
            reference = None if benchmark is None else ERRORS[benchmark][like]
            for label, unit in UNITS.items():
                values = getattr(deviations, label)
                if values is None:
                    continue
                value, error = rmse(values)
                metrics[f"{label}_rmse_{model}_{name}"] = Metric(
                    value,
                    unit,
                    error,
                    None if reference is None else getattr(reference, label),
                    "" if reference is None else f"{reference.model}, {DATA[str(benchmark)]}",
                )
            wrong = taken_for_others(one.predicted[model], one.given, one.frames)
            if wrong is not None:
                metrics[f"wrong_charge_state_{model}_{name}"] = Metric(wrong, "%", None, 0.0)
        if {"local", "celli"} <= set(one.squares):
            found = quotient(
                metrics[f"energy_rmse_celli_{name}"], metrics[f"energy_rmse_local_{name}"]
            )
            if benchmark is not None:
                charged, *_, bare = ERRORS[benchmark]
                source = f"{charged.model} over {bare.model}, {DATA[benchmark]}"
                found = found._replace(reference=charged.energy / bare.energy, source=source)
            metrics[f"energy_rmse_ratio_{name}"] = found
        if one.curves is not None:
            metrics |= of_curves(name, one.curves)
    for name, one in moved.items():
        metrics[f"energy_drift_{name}"] = Metric(one.drift, "meV/atom/ps", one.drift_error, 0.0)
        spread = float((one.energy - one.energy.mean()).std())
        metrics[f"energy_fluctuation_{name}"] = Metric(spread, "meV/atom", None, 0.0)
    for n, row in costs.items():
        for model, (wall, _) in row.items():
            metrics[f"milliseconds_per_step_{model}_{n}_atoms"] = Metric(1e3 * wall, "ms")
        metrics[f"times_faster_than_mace_{n}_atoms"] = Metric(
            row["mace"][0] / row["celli"][0], "", None, 2.0, "goal"
        )
    return metrics


def of_curves(name: str, found: Curves) -> dict[str, Metric]:
    """Deviations of energy curves, their difference, and where they are lowest."""
    metrics = {}
    truth = removal_slope(found, "reference")
    shift = float(minima(found, "reference") @ [-1.0, 1.0])
    for model in found.energies:
        if model != "reference":
            deviations = curve_deviations(found, model)
            metrics[f"curve_rmse_{model}_{name}"] = Metric(
                float((deviations**2).mean() ** 0.5), "meV", None, 0.0
            )
        value = removal_slope(found, model)
        metrics[f"removal_slope_{model}_{name}"] = Metric(value, "eV/Å", None, truth, "PBE")
        value = float(minima(found, model) @ [-1.0, 1.0])
        metrics[f"minimum_shift_{model}_{name}"] = Metric(value, "Å", None, shift, "PBE")
    return metrics


def quotient(one: Metric, other: Metric, reference: float | None = None) -> Metric:
    """A ratio, and its error as if those of the two were independent."""
    value = one.value / other.value
    relative = sum(((m.error or 0.0) / m.value) ** 2 for m in (one, other)) ** 0.5
    return Metric(value, "", value * relative, reference, "at most" if reference else "")


def summary(settings: SetConfig, one: Outcome) -> dict[str, Any]:
    """What the figures are made of, as JSON."""
    found: dict[str, Any] = {
        "data": settings.file,
        "structures_learned_from": one.n_learned,
        "structures_held_out": len(one.frames),
        "published": {
            row.model: {"energy": row.energy, "forces": row.forces, "charges": row.charges}
            for row in (() if settings.published is None else ERRORS[settings.published])
        },
        "published_data": "" if settings.published is None else DATA[settings.published],
    }
    if one.curves is not None:
        found["curves"] = {
            "distances": one.curves.distances.tolist(),
            "net_charges": list(one.curves.charges),
            "energies": {name: e.tolist() for name, e in one.curves.energies.items()},
        }
    return found


if __name__ == "__main__":
    app()
