"""The subcommands; everything heavy is imported when one of them runs."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

GROUP = "mosaicmd.commands"
OF_WEIGHTS = "float32 or float64 [that of the weights]"

DryRun = Annotated[bool, typer.Option("--dry-run", help="print the settings as resolved, and stop")]
Quiet = Annotated[bool, typer.Option("--quiet", help="show no progress")]
Model = Annotated[Path, typer.Argument(help="model directory")]


def build_app() -> typer.Typer:
    """The command with the subcommands of every installed member."""
    app = typer.Typer(
        help="Learn molecular potentials, and simulate with them.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    own = {"train": train, "evaluate": evaluate, "md": md, "export": export, "schema": schema}
    for name, command in own.items():
        app.command(name)(_explained(command))
    for entry in entry_points(group=GROUP):
        if entry.name in own:
            warnings.warn(
                f"the command {entry.name!r} of {_owner(entry)} is left out: there is one",
                stacklevel=2,
            )
            continue
        own[entry.name] = _plugin(entry)
        app.command(
            entry.name,
            help=f"(of {_owner(entry)})",
            add_help_option=False,
            context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        )(own[entry.name])
    return app


def train(
    config: Annotated[Path, typer.Argument(help="settings, YAML or JSON; see `mosaicmd schema`")],
    out: Annotated[Path | None, typer.Option(help="where results go [runs/NAME]")] = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Fit a potential to energies, forces and stresses.

    Writes model, errors and report into a folder; the same command again resumes.
    """
    _prepare_jax()
    from mosaicmd.kernel.cli.training_config import load_training_config
    from mosaicmd.kernel.cli.training_run import run_training, starting_model

    settings = load_training_config(config)
    if dry_run:
        starting_model(settings, None)
        missing = [
            f.path for fs in settings.data.files().values() for f in fs if not f.path.is_file()
        ]
        if missing:
            raise ValueError(f"data files do not exist: {', '.join(map(str, missing))}")
        _print_settings(settings)
        return
    out = out or Path("runs") / config.stem
    metrics = run_training(settings, out, quiet=quiet)
    from mosaicmd.kernel.cli.label_report import describe

    typer.echo(describe(metrics))
    typer.echo(f"model: {out / 'model'}\nreport: {out / 'report.html'}")


def evaluate(
    model: Model,
    data: Annotated[Path, typer.Argument(help="labelled structures")],
    out: Annotated[Path | None, typer.Option(help="folder for results.json and a report")] = None,
    length_unit: Annotated[str, typer.Option(help="of the file")] = "A",
    energy_unit: Annotated[str, typer.Option(help="of the file")] = "eV",
    name: Annotated[
        list[str] | None, typer.Option(help="of a label in the file: energy=REF_energy; repeatable")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="a column that is no label; repeatable")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    dtype: Annotated[str | None, typer.Option(help=OF_WEIGHTS)] = None,
) -> None:
    """Errors of a model on labelled structures."""
    _prepare_jax(training=False)
    from mosaicmd.kernel.cli.label_report import (
        compare_labels,
        describe,
        label_metrics,
        write_label_report,
    )
    from mosaicmd.kernel.cli.labelled_files import read_labelled
    from mosaicmd.kernel.cli.training_config import DataFile
    from mosaicmd.kernel.cli.training_run import without_reference
    from mosaicmd.kernel.config import load_config
    from mosaicmd.kernel.dispersion import subtract_dispersion
    from mosaicmd.kernel.examples import make_examples
    from mosaicmd.kernel.model_files import load_model
    from mosaicmd.kernel.precision import weights_type

    names = dict(_pair(one) for one in name or ())
    settings = {
        "path": data,
        "length_unit": length_unit,
        "energy_unit": energy_unit,
        "names": names,
        "ignore": ignore or [],
    }
    found = read_labelled(load_config(DataFile, settings))
    loaded = load_model(model, dtype=None if dtype is None else _dtype(dtype))
    potential, params, energies, correction = without_reference(*loaded)
    for system, _ in found:
        potential.check(system)
    if correction is not None:
        found = subtract_dispersion(found, correction)
    kind = dtype or weights_type(params) or "float32"
    examples = make_examples(found, potential.cutoff, reference_energies=energies, dtype=kind)
    splits = {
        "all": compare_labels(potential, params, examples, batch_size=batch_size, separate=True)
    }
    if out is None:
        typer.echo(describe(label_metrics(splits)))
        return
    out.mkdir(parents=True, exist_ok=True)
    title = f"{model.name} on {data.name}"
    metrics = write_label_report(out, title, splits, n_structures={"all": len(found)})
    typer.echo(describe(metrics))
    typer.echo(f"report: {out / 'report.html'}")


def md(
    model: Model,
    structure: Annotated[Path, typer.Argument(help="atoms to start from")],
    config: Annotated[Path | None, typer.Option(help="settings file, YAML or JSON")] = None,
    out: Annotated[Path | None, typer.Option(help="where results go [runs/md-NAME]")] = None,
    ensemble: Annotated[str | None, typer.Option(help="nve, nvt or npt")] = None,
    temperature: Annotated[str | None, typer.Option(help='as "300 K"')] = None,
    pressure: Annotated[str | None, typer.Option(help='as "1 bar"')] = None,
    timestep: Annotated[str | None, typer.Option(help='as "0.5 fs"')] = None,
    steps: Annotated[int | None, typer.Option()] = None,
    duration: Annotated[str | None, typer.Option(help='as "10 ps"')] = None,
    every: Annotated[int | None, typer.Option(help="steps between frames")] = None,
    repeat: Annotated[str | None, typer.Option(help='supercell, as "2,2,2"')] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    dtype: Annotated[str | None, typer.Option(help=OF_WEIGHTS)] = None,
    trajectory: Annotated[str | None, typer.Option(help="name, .traj, .h5, .xtc or .dcd")] = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Molecular dynamics with a model; the same command again resumes.

    Further settings (thermostat, barostat, ...) stand in the file of --config, which options
    override; `mosaicmd schema md` lists them.
    """
    _prepare_jax(training=False)
    from mosaicmd.kernel.cli.dynamics import DynamicsConfig, run_dynamics
    from mosaicmd.kernel.config import load_config
    from mosaicmd.kernel.report import with_error

    given = {
        "ensemble": ensemble,
        "temperature_kelvin": temperature,
        "pressure_bar": pressure,
        "timestep_fs": timestep,
        "steps": steps,
        "duration_ps": duration,
        "every": every,
        "repeat": None if repeat is None else repeat.split(","),
        "seed": seed,
        "dtype": dtype,
        "trajectory": trajectory,
    }
    overrides = {name: value for name, value in given.items() if value is not None}
    settings = load_config(DynamicsConfig, config, overrides)
    if dry_run:
        _print_settings(settings)
        return
    out = out or Path("runs") / f"md-{structure.name.partition('.')[0]}"
    metrics = run_dynamics(model, structure, settings, out, progress=False if quiet else None)
    for name, metric in metrics.items():
        typer.echo(f"{name:26s} {with_error(metric.value, metric.error)} {metric.unit}")
    typer.echo(f"trajectory: {out / settings.trajectory}")


def export(
    model: Model,
    out: Annotated[Path | None, typer.Option(help="file [MODEL.mosaicmd]")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64")] = "float32",
    species: Annotated[
        str | None, typer.Option(help='symbols or labels, as "Si,O", for a model of any species')
    ] = None,
) -> None:
    """Write a model as one file that runs with jax alone."""
    from mosaicmd.kernel.cli.training_run import species_label
    from mosaicmd.kernel.deploy import export_model

    labels = None if species is None else [species_label(s.strip()) for s in species.split(",")]
    path = model.with_name(f"{model.resolve().name}.mosaicmd") if out is None else out
    export_model(model, path, dtype=_dtype(dtype), species=labels)
    typer.echo(f"program: {path}")


def schema(
    of: Annotated[str, typer.Argument(help="train or md")] = "train",
) -> None:
    """Print the JSON schema of the settings, for editors."""
    import json

    from mosaicmd.kernel.cli.training_config import TrainingConfig

    if of == "train":
        found = TrainingConfig.model_json_schema()
    elif of == "md":
        from mosaicmd.kernel.cli.dynamics import DynamicsConfig

        found = DynamicsConfig.model_json_schema()
    else:
        raise ValueError(f"there are schemas of `train` and `md`, not of {of!r}")
    typer.echo(json.dumps(found, indent=2))


def _plugin(entry: EntryPoint) -> Callable[[typer.Context], None]:
    """A command that loads that of a member when it is called."""

    def call(ctx: typer.Context) -> None:
        try:
            command = entry.load()
            if not isinstance(command, typer.Typer):
                function, command = command, typer.Typer(pretty_exceptions_enable=False)
                command.command()(function)
        except Exception as error:  # whatever importing somebody else's code may raise
            _fail(
                f"the command {entry.name!r} of {_owner(entry)} cannot be loaded "
                f"({type(error).__name__}: {error}); reinstall that package, or remove it"
            )
        command(args=list(ctx.args), prog_name=f"mosaicmd {entry.name}")

    return call


def _explained(command: Callable[..., None]) -> Callable[..., None]:
    """The command with errors of its user in one line instead of a traceback."""

    @functools.wraps(command)
    def call(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except (ValueError, OSError, ImportError) as error:
            _fail(str(error))
        except RuntimeError as error:
            from mosaicmd.kernel.registry import DataSetError
            from mosaicmd.kernel.simulation import SimulationError

            if not isinstance(error, DataSetError | SimulationError):
                raise
            _fail(str(error))

    return call


def _fail(message: str) -> NoReturn:
    sys.stdout.flush()
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)


def _prepare_jax(*, training: bool = True) -> None:
    """Allow float64, let products in float32 be that on accelerators, and compile soon."""
    import jax

    from mosaicmd.kernel.compilation import tune_compiler

    tune_compiler(training=training)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "float32")


def _dtype(name: str) -> str:
    if name not in ("float32", "float64"):
        raise ValueError(f"--dtype must be float32 or float64, got {name!r}")
    return name


def _pair(text: str) -> tuple[str, str]:
    label, equals, column = text.partition("=")
    if not equals:
        raise ValueError(f"--name must look like energy=REF_energy, got {text!r}")
    return label, column


def _print_settings(settings: Any) -> None:
    import yaml

    content = settings.model_dump(mode="json")
    typer.echo(yaml.safe_dump(content, sort_keys=False, allow_unicode=True).rstrip())


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value
