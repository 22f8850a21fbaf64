"""The pictures of the report."""

from pathlib import Path
from typing import Any

import ase
import matplotlib.pyplot as plt
import numpy as np
from properties import N_BINS, R_MAX, UNITS
from settings import SCRATCH

from mosaicmd.kernel.report import Metric, Section, write_report
from mosaicmd.transfer import survival_curve

SCRATCH_COLOR, TRUTH_COLOR = "#1c2733", "#8a8a8a"
PALETTE = ("#c0392b", "#2a9d8f", "#8e6c8a", "#d98e04", "#1f77b4")
HOT = ("stable_ps", "failed")
LABELS = {
    "rmse_energy_mev_per_atom": "energy",
    "rmse_forces_mev_per_angstrom": "forces",
    "rmse_stress_gpa": "stress",
}


def write_page(
    out: Path,
    settings: Any,
    outcomes: dict[str, Any],
    metrics: dict[str, Metric],
    skipped: dict[str, str],
) -> None:
    """``report.html``, and its figures as PNG beside it."""
    sections = [
        Section(
            "Figures of merit",
            "Ratios are test errors over those from scratch, seed by seed, with the standard "
            "error over seeds; below 1, transfer helps.",
            metrics=metrics,
        )
    ]
    for name, outcome in outcomes.items():
        for heading, text, figure in pictures(settings, name, outcome):
            stem = heading.replace(" ", "-")
            figure.savefig(out / f"{name}-{stem}.png", dpi=110, bbox_inches="tight")
            sections.append(Section(f"{name}: {heading}", text, figure))
    for name, why in skipped.items():
        sections.append(Section(f"{name}: skipped", why))
    write_report(out / "report.html", "From one element to another", sections)
    plt.close("all")


def pictures(settings: Any, name: str, outcome: Any) -> list[tuple[str, str, Any]]:
    """Headings, texts and figures of one pair."""
    found = [
        (
            "learning curves",
            "Error of test forces against the number of training structures, validation "
            "included. Every strategy has the same steps, subsets and learning rates to choose "
            "from. Small dots are seeds, bars standard errors of their mean.",
            curve_figure(outcome),
        ),
        (
            "gain and loss",
            "Ratio of errors to those from scratch (geometric mean over seeds), by what is "
            "predicted and for which structures or properties. Blue: transfer is better; red: it "
            "is worse. Columns are numbers of training structures.",
            gain_figure(outcome),
        ),
    ]
    if outcome.properties:
        found.append(
            (
                "properties",
                f"Never learned from, of models from {outcome.curves[SCRATCH].sizes[0]} "
                "structures: deviation from the potential that made the data. Dots are "
                "seeds; those that do not relax are missing.",
                property_figure(outcome),
            )
        )
    if any("g" in run for runs in outcome.hot.values() for run in runs):
        text = (
            "Radial distribution in the hot liquid, mean over runs that last half of the time; "
            "the grey line is true."
        )
        found.append(("liquid", text, liquid_figure(outcome)))
    if outcome.hot:
        hot = settings.pairs[name].hot
        found.append(
            (
                "stability",
                f"Share of runs at {hot.temperature_kelvin:g} K that are still sane (Kaplan and "
                "Meier), of models from the fewest structures: thin lines are models, thick ones "
                "all runs of all models.",
                stability_figure(outcome, hot.duration_ps),
            )
        )
        text = "The first run of each at its end, or just before it became unphysical."
        found.append(("structures", text, structure_figure(outcome)))
    return found


def color(outcome: Any, name: str) -> str:
    if name in (SCRATCH, "truth"):
        return SCRATCH_COLOR if name == SCRATCH else TRUTH_COLOR
    names = [other for other in outcome.curves if other != SCRATCH]
    return PALETTE[names.index(name) % len(PALETTE)]


def curve_figure(outcome: Any) -> Any:
    figure, panel = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
    for k, (name, curve) in enumerate(outcome.curves.items()):
        sizes = curve.sizes * 1.03 ** (k - 0.5 * (len(outcome.curves) - 1))
        panel.errorbar(sizes, curve.mean, curve.error, fmt="o-", color=color(outcome, name),
                       capsize=3, label=name)  # fmt: skip
        for values in curve.values.T:
            panel.plot(sizes, values, ".", color=color(outcome, name), ms=3, alpha=0.6)
    panel.set(xscale="log", yscale="log", xlabel="training structures",
              ylabel="RMSE of forces / meV/Å")  # fmt: skip
    panel.legend(frameon=False)
    return figure


def groups_in(results: list[dict[str, Any]]) -> list[str]:
    """Names of the test set and of its groups, in the order in which they were tested."""
    found = dict.fromkeys(key.split("/")[0] for key in results[0] if "/" in key)
    return [name for name in found if name != "validation"]


def gain_figure(outcome: Any) -> Any:
    """Ratios to scratch of errors by group and label, of other temperatures, and of properties."""
    strategies = [name for name in outcome.curves if name != SCRATCH]
    columns = gain_columns(outcome, strategies[0])
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    figure, panels = plt.subplots(
        1,
        len(strategies),
        figsize=(3.0 + 0.75 * len(columns) * len(strategies), 0.9 + 0.24 * len(rows)),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for panel, strategy in zip(panels[0], strategies, strict=True):
        columns = gain_columns(outcome, strategy)
        ratio = np.array([[column.get(row, np.nan) for column in columns.values()] for row in rows])
        image = panel.imshow(np.log2(ratio), cmap="coolwarm", vmin=-1.5, vmax=1.5, aspect="auto")
        for i, j in np.ndindex(ratio.shape):
            if np.isfinite(ratio[i, j]):
                panel.text(j, i, f"{ratio[i, j]:.2f}", ha="center", va="center", fontsize=7)
        panel.set_xticks(range(len(columns)), list(columns), fontsize=8)
        panel.set(title=strategy)
    panels[0][0].set_yticks(range(len(rows)), rows, fontsize=8)
    figure.colorbar(image, ax=panels[0].tolist(), label="log2 of the ratio of errors")
    return figure


def gain_columns(outcome: Any, strategy: str) -> dict[str, dict[str, float]]:
    """Ratios by column and row of the heat map."""
    columns: dict[str, dict[str, float]] = {}
    for size in outcome.curves[SCRATCH].sizes:
        mine, other = (
            [
                result
                for trial, result in zip(outcome.trials, outcome.results, strict=True)
                if trial[:2] == (name, size)
            ]
            for name in (strategy, SCRATCH)
        )
        columns[str(size)] = label_ratios(mine, other)
    least = str(outcome.curves[SCRATCH].sizes[0])
    if outcome.restricted:
        mine, other = outcome.restricted[strategy], outcome.restricted[SCRATCH]
        columns[f"{least},\none T"] = label_ratios(mine, other)
    deviations = {name: deviations_of(outcome, name) for name in (strategy, SCRATCH)}
    for row in deviations[strategy]:
        values = deviations[strategy][row] / deviations[SCRATCH][row]
        columns[least][row] = geometric_mean(values)
    return columns


def label_ratios(mine: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, float]:
    found = {}
    for group in groups_in(mine):
        for key, label in LABELS.items():
            if f"{group}/{key}" in mine[0]:
                values = np.array(
                    [[one[f"{group}/{key}"] for one in ones] for ones in (mine, other)]
                )
                found[f"{group}: {label}"] = geometric_mean(values[0] / values[1])
    return found


def deviations_of(outcome: Any, strategy: str) -> dict[str, np.ndarray]:
    """Absolute deviations from the truth by property, one per seed."""
    found = {}
    for name in UNITS if outcome.properties else ():
        values = np.array([one[name] for one in outcome.properties[strategy]])
        found[name.replace("_", " ")] = np.abs(values - outcome.truth[name])
    runs, true = outcome.hot.get(strategy, []), outcome.hot.get("truth", [])
    if runs and true and "g" in runs[0]:
        g = np.nanmean(np.concatenate([run["g"] for run in true]), axis=0)
        found["liquid g(r)"] = np.array(
            [np.sqrt(np.mean((mean_of(run["g"]) - g) ** 2)) for run in runs]
        )
        diffusion = np.nanmean(np.concatenate([run["diffusion"] for run in true]))
        means = [np.mean(mean_of(run["diffusion"][:, None])) for run in runs]
        found["diffusion"] = np.abs(np.array(means) - diffusion)
    return found


def mean_of(rows: np.ndarray) -> np.ndarray:
    """Mean of the rows that are finite; nan without any."""
    rows = rows[np.all(np.isfinite(rows), axis=1)]
    return rows.mean(axis=0) if len(rows) else np.full(rows.shape[1], np.nan)


def geometric_mean(values: np.ndarray) -> float:
    """Of what is finite; nan without any."""
    values = values[np.isfinite(values) & (values > 0.0)]
    return float(np.exp(np.mean(np.log(values)))) if len(values) else float("nan")


def property_figure(outcome: Any) -> Any:
    figure, panel = plt.subplots(figsize=(7.0, 3.6), layout="constrained")
    for k, (strategy, seeds) in enumerate(outcome.properties.items()):
        for i, name in enumerate(UNITS):
            values = np.array([one[name] for one in seeds])
            deviation = 100.0 * (values / outcome.truth[name] - 1.0)
            place = i + 0.22 * (k - 0.5 * (len(outcome.properties) - 1))
            panel.plot(np.full(len(values), place), deviation, "o", color=color(outcome, strategy),
                       ms=4, label=strategy if i == 0 else None)  # fmt: skip
    panel.axhline(0.0, color=TRUTH_COLOR, lw=0.8)
    panel.set_yscale("symlog", linthresh=10.0)
    panel.set_xticks(range(len(UNITS)), [name.replace("_", "\n") for name in UNITS], fontsize=8)
    panel.set(ylabel="deviation / %")
    panel.legend(frameon=False)
    return figure


def liquid_figure(outcome: Any) -> Any:
    figure, panel = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    r = (np.arange(N_BINS) + 0.5) * R_MAX / N_BINS
    for name in ("truth", *outcome.curves):
        curves = np.concatenate([run["g"] for run in outcome.hot[name]])
        curves = curves[np.all(np.isfinite(curves), axis=1)]
        if not len(curves):
            panel.plot([], [], color=color(outcome, name), label=f"{name}: no run lasted")
            continue
        mean = curves.mean(axis=0)
        panel.plot(r, mean, color=color(outcome, name), label=f"{name} ({len(curves)} runs)",
                   lw=4 if name == "truth" else 1.5)  # fmt: skip
        if len(curves) > 1:
            error = curves.std(axis=0, ddof=1) / np.sqrt(len(curves))
            panel.fill_between(r, mean - error, mean + error, color=color(outcome, name), alpha=0.2)
    panel.set(xlabel="r / Å", ylabel="g(r)")
    panel.legend(frameon=False)
    return figure


def stability_figure(outcome: Any, duration: float) -> Any:
    figure, panel = plt.subplots(figsize=(5.0, 3.2), layout="constrained")

    def draw(runs: list[dict[str, Any]], name: str, **style: Any) -> None:
        times, failed = (np.concatenate([run[key] for run in runs]) for key in HOT)
        curve = survival_curve(times, failed)
        share = np.concatenate([[1.0], curve.share])
        at = np.concatenate([[0.0], curve.times, [duration]])
        panel.step(
            at, np.append(share, share[-1]), where="post", color=color(outcome, name), **style
        )

    for name, runs in outcome.hot.items():
        for run in runs:
            draw([run], name, lw=0.6, alpha=0.5)
        draw(runs, name, lw=2.0, label=f"{name} ({len(runs)} x {len(runs[0][HOT[0]])} runs)")
    panel.set(xlabel="time / ps", ylabel="share of runs", ylim=(-0.03, 1.05))
    panel.legend(frameon=False)
    return figure


def structure_figure(outcome: Any) -> Any:
    """Atoms seen along z, those behind paler."""
    figure, panels = plt.subplots(
        1, len(outcome.hot), figsize=(2.9 * len(outcome.hot), 3.0), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for panel, (name, runs) in zip(panels[0], outcome.hot.items(), strict=True):
        run = runs[0]
        atoms = ase.Atoms(run["numbers"], run["positions"], cell=run["cell"], pbc=True)
        x, y, z = atoms.positions[np.argsort(atoms.positions[:, 2])].T
        panel.scatter(x, y, s=110, c=z, cmap="Greys", vmin=z.min() - 6.0, edgecolors="k", lw=0.4)
        a, b = atoms.cell.array[:2, :2]
        edge = np.array([[0.0, 0.0], a, a + b, b, [0.0, 0.0]])
        panel.plot(*edge.T, color=color(outcome, name), lw=1.5)
        panel.set(
            title=f"{name}, {run['stable_ps'][0]:.1f} ps", aspect="equal", xticks=[], yticks=[]
        )
    return figure
