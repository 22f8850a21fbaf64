"""Does a potential of silicon help to learn germanium? Learning curves, and where it hurts."""

import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import ase.io
import figures
import jax
import numpy as np
import typer
from properties import HotJob, PropertyJob, hot, properties
from reference import generate
from settings import (
    SCRATCH,
    BudgetConfig,
    ElementFiles,
    PairConfig,
    SyntheticElement,
    TrainingConfig,
    TransferConfig,
    find,
)
from trainings import Job, groups_of, model_folder, rms_force
from trainings import run as train_one

from mosaicmd.kernel.cluster import map as spread_over
from mosaicmd.kernel.compilation import tune_compiler
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.registry import DataSetError
from mosaicmd.kernel.report import Metric, write_results
from mosaicmd.kernel.run_folders import settings_and_folder
from mosaicmd.transfer import (
    Curve,
    Trial,
    chosen_rates,
    compared_means,
    covalent_length_ratio,
    lattice_length_ratio,
    learning_curve,
    plan_trials,
    relative_errors,
)

HERE = Path(__file__).parent
FORCES = "rmse_forces_mev_per_angstrom"

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


class Outcome(NamedTuple):
    """Everything that one pair of elements showed."""

    source: dict[str, Any]  # errors of the source model on its own element
    trials: list[Trial]
    results: list[dict[str, Any]]  # of `trials`, those at the chosen rates
    tried: list[tuple[Trial, dict[str, Any]]]  # at all rates, to choose them
    curves: dict[str, Curve]  # of test force errors, by strategy
    percents: dict[int, int]  # sizes in percent of the training set
    restricted: dict[str, list[dict[str, Any]]]  # trained on some groups, by strategy
    properties: dict[str, list[dict[str, float]]]  # at the smallest size, by strategy
    truth: dict[str, float]
    hot: dict[str, list[dict[str, Any]]]  # at the smallest size, by strategy; also the truth


@app.callback()
def main() -> None:
    tune_compiler()
    jax.config.update("jax_enable_x64", True)


Preset = Annotated[str, typer.Option(help="settings in config/PRESET.yaml")]
Settings = Annotated[Path | None, typer.Option(help="settings file instead of a preset")]
Cluster = Annotated[str | None, typer.Option(help="address of a dask scheduler to spread work on")]
Workers = Annotated[int | None, typer.Option(min=1, help="local processes [one per processor]")]
Out = Annotated[Path | None, typer.Option(help="where results go [runs/silicon-germanium-PRESET]")]


@app.command()
def run(
    preset: Preset = "quick",
    config: Settings = None,
    out: Out = None,
    workers: Workers = None,
    cluster: Cluster = None,
) -> None:
    """Train, compare and report; the same command again resumes."""
    if workers and cluster:
        raise typer.BadParameter("--workers are local processes; a cluster has its own")
    try:
        settings, out = settings_and_folder(
            TransferConfig,
            HERE / "config",
            preset=preset,
            config=config,
            out=out,
            name="silicon-germanium",
        )
        out = out.resolve()
        base = Path.cwd() if config is None else config.resolve().parent
        outcomes, skipped = {}, {}
        for name, pair in settings.pairs.items():
            try:
                files = files_of(settings, pair, out / name, base)
            except DataSetError as error:
                skipped[name] = str(error)
                typer.echo(f"{name} is skipped: {error}")
                continue
            typer.echo(f"{name}: training")
            spread = functools.partial(
                spread_over, cache=out / name / "cache", cluster=cluster, n_workers=workers
            )
            outcomes[name] = compared(settings, pair, files, out / name, spread)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    metrics = figures_of_merit(settings, outcomes)
    write_results(
        out / "results.json",
        metrics,
        settings=settings.model_dump(mode="json"),
        skipped=skipped,
        pairs={name: summary(outcome) for name, outcome in outcomes.items()},
    )
    figures.write_page(out, settings, outcomes, metrics, skipped)
    for name, metric in metrics.items():
        typer.echo(f"{name:44s} {metric.value:12.5g} ± {metric.error or 0.0:.2g} {metric.unit}")
    typer.echo(f"report: {out / 'report.html'}")


def files_of(
    settings: TransferConfig, pair: PairConfig, folder: Path, base: Path
) -> tuple[ElementFiles, ElementFiles]:
    """Structures of source and target, made or found."""
    found = []
    for k, element in enumerate((pair.source, pair.target)):
        if isinstance(element, SyntheticElement):
            assert pair.dynamics is not None
            seed = settings.seed + 1000 * k
            found.append(generate(element, pair.dynamics, seed, folder / "data"))
        else:
            paths = {part: str(find(getattr(element, part), base)) for part in ("train", "test")}
            found.append(ElementFiles(**paths))
    return found[0], found[1]


def compared(
    settings: TransferConfig,
    pair: PairConfig,
    files: tuple[ElementFiles, ElementFiles],
    folder: Path,
    spread: Callable[..., list[Any]],
) -> Outcome:
    """All trainings of one pair, and what their models can do; ``spread`` maps over items."""
    source, target = files
    training, models = pair.training, folder / "models"
    species = species_of(source.train), species_of(target.train)
    digest = contents([*source.model_dump().values(), *target.model_dump().values()])
    common = {
        "model": (pair.model or settings.model).model_dump(mode="json"),
        "settings": training.model_dump(mode="json", include=set(BudgetConfig.model_fields)),
        "species": species,
        "tables": tables(pair, species),
        "force_scale": rms_force(source.train),
    }
    first = models / "source"
    job = Job(source.train, source.test, str(first), seed=settings.seed, **common)
    (of_source,) = spread(train_one, [job], version=digest)
    digest += str(of_source)
    strategies = {SCRATCH: None} | {
        name: one.model_dump(mode="json") for name, one in settings.strategies.items()
    }

    def trained(trials: list[tuple[Trial, tuple[str, ...]]]) -> list[dict[str, Any]]:
        jobs = [
            Job(
                target.train,
                target.test,
                str(model_folder(models, trial, groups)),
                seed=settings.seed + 1 + trial.seed,
                trial=trial,
                strategy=strategies[trial.strategy],
                source="" if trial.strategy == SCRATCH else str(first),
                groups=groups,
                **common,
            )
            for trial, groups in trials
        ]
        return spread(train_one, jobs, version=digest)

    percents = sizes_of(training, len(groups_of(target.train)))
    sizes = list(percents)
    tried = plan_trials(list(strategies), sizes, training.tuning_seeds, training.rates)
    tried_results = trained([(trial, ()) for trial in tried])
    rates = chosen_rates(tried, tried_results, tuned_on="validation/loss")
    trials = [
        Trial(strategy, size, seed, rates[strategy, size])
        for strategy in strategies
        for size in sizes
        for seed in range(training.seeds)
    ]
    smallest = {name: [t for t in trials if t[:2] == (name, sizes[0])] for name in strategies}
    groups = training.only_groups
    check_groups(target.train, groups)
    n_hot = pair.hot.models if pair.hot else 0
    in_heat = {
        name: [some[0]._replace(seed=seed) for seed in range(n_hot)]
        for name, some in smallest.items()
    }
    further = [t for some in smallest.values() for t in some] if groups else []
    found = trained(
        [(t, ()) for t in trials]
        + [(t, groups) for t in further]
        + [(t, ()) for some in in_heat.values() for t in some]
    )  # partly cached
    results = found[: len(trials)]
    of_groups = found[len(trials) : len(trials) + len(further)]
    restricted = dict(zip(smallest, parts(of_groups, len(smallest)), strict=False))
    curves = {
        name: learning_curve(trials, results, name, f"test/{FORCES}", tuned_on="validation/loss")
        for name in strategies
    }
    cold, warm = (
        {name: [str(model_folder(models, t)) for t in some] for name, some in chosen.items()}
        for chosen in (smallest, in_heat)
    )
    spread = functools.partial(spread, version=digest + str(found))
    of_models, truth = properties_of(pair, cold, spread)
    return Outcome(
        of_source,
        trials,
        results,
        list(zip(tried, tried_results, strict=True)),
        curves,
        percents,
        restricted,
        of_models,
        truth,
        hot_runs_of(pair, warm, target.test, spread),
    )


def properties_of(
    pair: PairConfig, models: dict[str, list[str]], spread: Callable[..., list[Any]]
) -> tuple[dict[str, list[dict[str, float]]], dict[str, float]]:
    """Properties of models and of what made their data; files do not say what is true."""
    if not isinstance(pair.target, SyntheticElement):
        return {}, {}
    element = pair.target.model_dump(mode="json")
    items = [PropertyJob(element, path) for paths in models.values() for path in paths]
    *found, truth = spread(properties, [*items, PropertyJob(element, None)])
    return dict(zip(models, parts(found, len(models)), strict=True)), truth


def hot_runs_of(
    pair: PairConfig, models: dict[str, list[str]], test: str, spread: Callable[..., list[Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Hot dynamics of models, and as many of what made their data where that is known."""
    if pair.hot is None:
        return {}
    options, element = pair.hot.model_dump(mode="json"), None
    kinds: dict[str, list[str | None]] = {name: [*paths] for name, paths in models.items()}
    if isinstance(pair.target, SyntheticElement):
        element = pair.target.model_dump(mode="json")
        kinds["truth"] = [None] * pair.hot.models
    items = [
        HotJob(path, element if path is None else None, test, options, seed)
        for paths in kinds.values()
        for seed, path in enumerate(paths)
    ]
    return dict(zip(kinds, parts(spread(hot, items), len(kinds)), strict=True))


def parts(values: list[Any], n: int) -> list[list[Any]]:
    """Equal parts of a list, in order; none of an empty one."""
    size = len(values) // n
    return [values[k * size : (k + 1) * size] for k in range(n)] if size else []


def sizes_of(training: TrainingConfig, n: int) -> dict[int, int]:
    """Numbers of training structures, ascending, with their share in percent."""
    sizes = {max(4, round(share * n)): round(100 * share) for share in sorted(training.shares)}
    if max(sizes) > n:
        raise ConfigError(f"the training set of the target has {n} structures; 4 are the least")
    return sizes


def tables(pair: PairConfig, species: tuple[int, int]) -> tuple[float, float]:
    """Ratios of length and energy, target over source, that no label of the target is in."""
    if isinstance(pair.source, SyntheticElement) and isinstance(pair.target, SyntheticElement):
        return pair.target.a / pair.source.a, pair.target.epsilon / pair.source.epsilon
    try:
        length = lattice_length_ratio(*species)
    except ValueError:
        length = covalent_length_ratio(*species)
    energies = pair.cohesive_energies
    return length, 1.0 if energies is None else energies[1] / energies[0]


def species_of(path: str) -> int:
    """The one element of a file."""
    numbers = {int(z) for atoms in ase.io.iread(path, ":") for z in atoms.numbers}
    if len(numbers) != 1:
        raise ConfigError(f"{path} has elements {sorted(numbers)}; give one element a file")
    return numbers.pop()


def check_groups(path: str, names: tuple[str, ...]) -> None:
    known = set(groups_of(path))
    if unknown := sorted(set(names) - known):
        raise ConfigError(f"`only_groups` {unknown} are not in {path}, which has {sorted(known)}")


def contents(paths: list[str]) -> str:
    """A digest of files: results belong to what is in them."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def figures_of_merit(settings: TransferConfig, outcomes: dict[str, Outcome]) -> dict[str, Metric]:
    """Ratios of errors to those from scratch, and mean stable times."""
    metrics = {}
    headline = next(iter(settings.strategies))
    for pair, outcome in outcomes.items():
        prefix = "" if pair == "real" else f"{pair}_"
        for strategy, curve in outcome.curves.items():
            tag = "" if strategy == headline else f"_{strategy}"
            for size, mean, error in zip(curve.sizes, curve.mean, curve.error, strict=True):
                name = f"{prefix}force_rmse_{strategy}_{outcome.percents[int(size)]}pct"
                metrics[name] = metric(mean, error, "meV/Å")
            if strategy == SCRATCH:
                continue
            ratios = relative_errors(curve, outcome.curves[SCRATCH])
            for size, mean, error in zip(ratios.sizes, ratios.mean, ratios.error, strict=True):
                name = f"{prefix}force_rmse_ratio{tag}_{outcome.percents[int(size)]}pct"
                metrics[name] = metric(mean, error)
            if outcome.restricted:
                for group in figures.groups_in(outcome.restricted[strategy]):
                    key = f"{group}/{FORCES}"
                    values = ratio(outcome.restricted[strategy], outcome.restricted[SCRATCH], key)
                    place = group.removeprefix("test, ").replace(" ", "")
                    name = f"{prefix}force_rmse_ratio{tag}_other_temperature_{place}"
                    metrics[name] = metric(*mean_error(values))
        if (hot_settings := settings.pairs[pair].hot) is not None:
            times = lasting_times(outcome, hot_settings.duration_ps)
            metrics |= {f"{prefix}{name}": one for name, one in times}
    return metrics


def lasting_times(outcome: Outcome, duration: float) -> Iterator[tuple[str, Metric]]:
    """Mean times within the duration, and how many times as long as from scratch."""
    times, failed = (
        {name: [run[key] for run in runs] for name, runs in outcome.hot.items()}
        for key in ("stable_ps", "failed")
    )
    means = compared_means(times, failed, SCRATCH, horizon=duration)
    for name, mean in means.mean.items():
        yield f"stable_ps_{name}", metric(mean, means.error[name], "ps")
        if name != SCRATCH:
            low, high = means.interval[name]
            yield f"stable_ps_ratio_{name}", metric(means.ratio[name], 0.25 * (high - low))


def ratio(runs: list[dict[str, Any]], others: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([one[key] / other[key] for one, other in zip(runs, others, strict=True)])


def mean_error(values: np.ndarray) -> tuple[float, float]:
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def metric(value: float, error: float, unit: str = "") -> Metric:
    return Metric(float(value), unit, float(error) if np.isfinite(error) else None)


def summary(outcome: Outcome) -> dict[str, Any]:
    """Every number that the figures are made of, as JSON."""
    pairs = [*zip(outcome.trials, outcome.results, strict=True)]
    hot = {
        key: {name: [np.asarray(run[key]).tolist() for run in runs] for name, runs in kinds.items()}
        for key in ("stable_ps", "failed")
        if (kinds := outcome.hot)
    }
    if any("diffusion" in run for runs in outcome.hot.values() for run in runs):
        hot["diffusion_square_angstrom_per_ps"] = {
            name: [[finite(value) for value in run["diffusion"]] for run in runs]
            for name, runs in outcome.hot.items()
        }
    return {
        "source": outcome.source,
        "trials": [{**trial._asdict(), **result} for trial, result in pairs],
        "tried": [
            {**trial._asdict(), "validation/loss": finite(result["validation/loss"])}
            for trial, result in outcome.tried
        ],
        "restricted": outcome.restricted,
        "truth": outcome.truth,
        "properties": {
            name: [{key: finite(x) for key, x in one.items()} for one in ones]
            for name, ones in outcome.properties.items()
        },
    } | hot


def finite(value: float) -> float | None:
    """JSON has no nan."""
    return float(value) if np.isfinite(value) else None


if __name__ == "__main__":
    app()
