"""Learn ten beads of alanine dipeptide from forces, from relative entropy, and from both."""

from pathlib import Path
from typing import Annotated, Any

import alanine
import figures
import jax
import numpy as np
import ramachandran
import routine
import typer
import validation

from mosaicmd.difftre import jensen_shannon_divergence
from mosaicmd.kernel import units
from mosaicmd.kernel.compilation import tune_compiler
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.metrics import read_metrics
from mosaicmd.kernel.model_files import load_model, save_model
from mosaicmd.kernel.potentials import Potential
from mosaicmd.kernel.report import Metric, write_results
from mosaicmd.kernel.run_folders import settings_and_folder

HERE = Path(__file__).parent
MODELS = ("prior", "matched", "entropy", "combined")
NAMES = {
    "prior": "prior",
    "matched": "force_matching",
    "entropy": "relative_entropy",
    "combined": "combined",
}
EXPLICIT = "explicit water: the reference that comes with this app"
HALVES = "one half of the reference from the other"
OTHERS = "five-bead frames of Wang et al., ACS Cent. Sci. 5, 755 (2019)"

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    tune_compiler()
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "float32")


Preset = Annotated[str, typer.Option(help="settings in config/PRESET.yaml")]
Settings = Annotated[Path | None, typer.Option(help="settings file instead of a preset")]
Out = Annotated[Path | None, typer.Option(help="results go here [runs/alanine-dipeptide-PRESET]")]


@app.command("train")
def train_models(preset: Preset = "quick", config: Settings = None, out: Out = None) -> None:
    """Learn the models and write them to OUT/model-*; the same command again resumes."""
    trained(*prepare(preset, config, out))


@app.command()
def run(preset: Preset = "quick", config: Settings = None, out: Out = None) -> None:
    """Learn, simulate with the results and report; the same command again resumes."""
    settings, reference, out = prepare(preset, config, out)
    potential, learned = trained(settings, reference, out)
    moving = alanine.simulation(settings.validation, potential, settings.kT)
    found = {
        name: validation.validate(settings, reference, moving, params, out / "validation" / name)
        for name, params in learned.items()
    }
    explicit = sampled(reference)
    metrics = compare(settings, reference, explicit, found)
    metrics |= speeds(settings, reference, potential, learned["combined"])
    write_results(
        out / "results.json",
        metrics,
        settings=settings.model_dump(mode="json"),
        reference=reference.record,
    )
    folders = {name: out / name / "metrics.jsonl" for name in ("combined", "entropy")}
    history = {name: read_metrics(path) for name, path in folders.items()}
    figures.write_page(out, settings, explicit, found, metrics, history)
    for name, metric in metrics.items():
        typer.echo(f"{name:32s} {metric.value:12.5g} ± {metric.error or 0.0:.2g} {metric.unit}")
    typer.echo(f"report: {out / 'report.html'}")


def prepare(
    preset: str, config: Path | None, out: Path | None
) -> tuple[alanine.AlanineConfig, alanine.Reference, Path]:
    """Checked settings, the reference, and an output directory that belongs to them."""
    folders = {"preset": preset, "config": config, "out": out, "name": "alanine-dipeptide"}
    try:
        settings, out = settings_and_folder(alanine.AlanineConfig, HERE / "config", **folders)
        folder = alanine.DATA if settings.data is None else Path(settings.data)
        return settings, alanine.load_reference(folder), out
    except (ConfigError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None


def trained(
    settings: alanine.AlanineConfig, reference: alanine.Reference, out: Path
) -> tuple[Potential, dict[str, Any]]:
    """The potential with the parameters of all models."""
    potential = alanine.build_potential(settings, reference)
    folders = {name: out / f"model-{name}" for name in MODELS}
    if not all(folder.exists() for folder in folders.values()):
        record = settings.model_dump(mode="json")
        for name, params in routine.learn(settings, potential, reference, out).items():
            save_model(folders[name], potential, params, training=record)
    return potential, {name: load_model(folders[name])[1] for name in MODELS}


def sampled(reference: alanine.Reference) -> ramachandran.Sampled:
    """Dihedrals of the reference in ten pieces, in the order of its frames."""
    angles = alanine.coordinates(reference.positions)["torsions"]
    length = len(angles) // 10
    return ramachandran.Sampled(angles[: 10 * length].reshape(10, length, 2))


def compare(
    settings: alanine.AlanineConfig,
    reference: alanine.Reference,
    explicit: ramachandran.Sampled,
    found: dict[str, validation.Findings],
) -> dict[str, Metric]:
    """Figures of merit of all models."""
    angles = alanine.coordinates(reference.positions)["torsions"]
    one, other = (ramachandran.histogram(angles[half]) for half in reference.halves())
    counts, scale = ramachandran.histogram(angles), units.KJ_PER_MOL
    metrics = {}
    for name, of in found.items():
        value, error = of.sampled.divergence(counts)
        metrics[f"jsd_{NAMES[name]}"] = Metric(value, "nats", error, 0.0, EXPLICIT)
    floor = jensen_shannon_divergence(one, other)
    metrics["jsd_floor"] = Metric(floor, "nats", None, 0.0, HALVES)
    for name, of in found.items():
        value = ramachandran.surface_error(of.sampled.counts, counts, settings.kT) / scale
        metrics[f"surface_error_{NAMES[name]}"] = Metric(value, "kJ/mol", None, 0.0, EXPLICIT)
    value = ramachandran.surface_error(one, other, settings.kT) / scale
    metrics["surface_error_floor"] = Metric(value, "kJ/mol", None, 0.0, HALVES)
    known, errors = explicit.populations()
    for k, basin in enumerate(ramachandran.BASINS):
        metrics[f"{basin}_reference"] = Metric(known[k], "", errors[k], None, "the explicit water")
    for name, of in found.items():
        shares, scatter = of.sampled.populations()
        for k, basin in enumerate(ramachandran.BASINS):
            metrics[f"{basin}_{NAMES[name]}"] = Metric(
                shares[k], "", scatter[k], known[k], EXPLICIT
            )
    forces, _ = alanine.mapped_forces(reference, settings.matching.force_map)
    for name, values in (("basic", reference.forces), (settings.matching.force_map, forces)):
        size = float(np.sqrt(np.mean(values**2)))
        metrics[f"force_size_{name}_map"] = Metric(size, "eV/Å", source="root mean square")
    others = ramachandran.outside()
    if others is not None:
        theirs = ramachandran.histogram(others)
        for name, mine in (("reference", counts), ("combined", found["combined"].sampled.counts)):
            value = jensen_shannon_divergence(mine, theirs)
            metrics[f"jsd_{name}_from_others"] = Metric(value, "nats", None, 0.0, OTHERS)
        for k, basin in enumerate(ramachandran.BASINS):
            share = float(ramachandran.basins(others)[k])
            metrics[f"{basin}_others"] = Metric(share, "", None, known[k], OTHERS)
    return metrics


def speeds(
    settings: alanine.AlanineConfig,
    reference: alanine.Reference,
    potential: Potential,
    params: Any,
) -> dict[str, Metric]:
    """Of all replicas together and, where OpenMM is installed, of explicit water beside them."""
    beads = validation.speed(settings, reference, potential, params)
    water = validation.explicit_speed()
    source = "per day of the processor; reference: explicit water on one core, by OpenMM"
    metrics = {"speed": Metric(beads, "ns/day", None, water, source)}
    if water is None:
        typer.echo("OpenMM is not installed, so explicit water is not timed beside the beads")
    return metrics


if __name__ == "__main__":
    app()
