"""The pictures and tables of the report."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from ase.data import covalent_radii
from evaluation import Answers, Curves, rmse
from matplotlib.colors import Normalize
from matplotlib.patches import Patch
from published import DATA, ERRORS, KO, UNKE
from settings import ChargeTransferConfig
from trainings import groups

from mosaicmd.kernel.report import Metric, Section, write_report

LABELS = {
    "local": "Allegro",
    "celli": "Allegro with CELLI",
    "fourth": "fourth generation",
    "mace": "MACE",
}
COLORS = {"local": "#d1752c", "celli": "#1f77b4", "fourth": "#4a9a62", "mace": "#8a5fb0"}
REFERENCE = "#1c2733"


def write_page(
    out: Path,
    settings: ChargeTransferConfig,
    outcomes: dict[str, Any],
    metrics: dict[str, Metric],
    moved: dict[str, Any],
    costs: dict[int, dict[str, tuple[float, float]]],
    skipped: dict[str, str],
) -> None:
    """``report.html``, and its figures as PNG beside it."""
    pictures: dict[str, Any] = {}
    sections = [Section("What must hold", checks(metrics))]
    for name, one in outcomes.items():
        pictures[f"{name}-energies"] = energy_figure(one)
        sections.append(
            Section(
                f"{name}: energies of structures held out",
                f"Models learned from {one.n_learned} structures and are asked about "
                f"{len(one.frames)}. Filled and open: the net charges.",
                pictures[f"{name}-energies"],
            )
        )
        if one.curves is not None:
            pictures[f"{name}-curves"] = curve_figure(one.curves)
            sections.append(
                Section(
                    f"{name}: an atom comes off, far from where the net charge is",
                    "Left: energies less the mean of each curve. Right: what the net charge costs, "
                    "the difference of the two curves, less its value at the shortest distance. "
                    "What is local says nothing of a charge beyond its cutoff.",
                    pictures[f"{name}-curves"],
                )
            )
        pictures[f"{name}-charges"] = charge_figure(one)
        sections.append(
            Section(
                f"{name}: charges",
                "One structure of each composition and net charge.",
                pictures[f"{name}-charges"],
            )
        )
    sections.append(Section("Errors beside published ones", table(settings, outcomes)))
    if outcomes:
        pictures["errors"] = error_figure(settings, outcomes)
        sections.append(
            Section(
                "Errors by set and model",
                "Root mean square errors of structures held out, with the standard error of "
                "drawing others. Lines: 4G-HDNNP (dashed), SpookyNet (dotted) and the local "
                "2G-HDNNP (both) as published, from thousands of structures labelled by "
                "another program.",
                pictures["errors"],
            )
        )
    if moved:
        pictures["conservation"] = conservation_figure(moved)
        sections.append(
            Section("Charged clusters at constant energy", figure=pictures["conservation"])
        )
    if costs:
        pictures["cost"] = cost_figure(costs)
        sections.append(
            Section(
                "Time per step in a crystal",
                "Energy and forces, float32; CELLI with a particle-mesh sum and an iterative "
                "solution.",
                pictures["cost"],
            )
        )
    sections.append(Section("Figures of merit", metrics=metrics))
    sections += [Section(f"{name}: skipped", why) for name, why in skipped.items()]
    for name, figure in pictures.items():
        figure.savefig(out / f"{name}.png", dpi=110, bbox_inches="tight")
    write_report(out / "report.html", "Charge transfer: what local models cannot know", sections)
    plt.close("all")


def checks(metrics: dict[str, Metric]) -> str:
    """In words, whether charges repair what is wrong without them."""
    value = {name: metric.value for name, metric in metrics.items()}
    claims = []
    if "energy_rmse_ratio" in value:
        ratio = value["energy_rmse_ratio"]
        claims.append((ratio <= 0.2, f"energy errors at most a fifth of the local ({ratio:.3f})"))
    for name, ratio in value.items():
        if name.startswith("energy_rmse_ratio_"):
            one = name.removeprefix("energy_rmse_ratio_")
            claims.append((ratio <= 0.2, f"the same of {one} alone ({ratio:.3f})"))
    for name, truth in value.items():
        if name.startswith("removal_slope_reference_"):
            one = name.removeprefix("removal_slope_reference_")
            if not {f"removal_slope_{m}_{one}" for m in ("celli", "local")} <= set(value):
                continue
            celli, local = (value[f"removal_slope_{m}_{one}"] for m in ("celli", "local"))
            holds = celli * truth > 0 and abs(celli - truth) < abs(local - truth)
            claims.append(
                (
                    holds,
                    f"what a net charge costs changes as in the reference ({truth:+.3f} eV/Å; "
                    f"CELLI {celli:+.3f}, local {local:+.3f})",
                )
            )
    for name, drift in value.items():
        if name.startswith("energy_drift_"):
            one = name.removeprefix("energy_drift_")
            claims.append(
                (abs(drift) <= 0.1, f"energy of {one} is kept ({drift:+.1e} meV/atom/ps)")
            )
    for name, times in value.items():
        if name.startswith("times_faster_than_mace_"):
            n = name.removeprefix("times_faster_than_mace_").removesuffix("_atoms")
            claims.append((times >= 2.0, f"twice as fast as MACE with {n} atoms ({times:.2f})"))
    said = [f"{'holds' if holds else 'does not hold'}: {claim}" for holds, claim in claims]
    return "; ".join(said) + "."


def table(settings: ChargeTransferConfig, outcomes: dict[str, Any]) -> str:
    """Errors of ours and of publications, and which data each learned from, in words."""
    lines = []
    for name, one in outcomes.items():
        for model, found in one.squares.items():
            values = [getattr(found, label) for label in ("energy", "forces", "charges")]
            shown = " / ".join("–" if v is None else f"{rmse(v)[0]:.3g}" for v in values)
            lines.append(f"{name}, {LABELS[model]}, {one.n_learned} structures: {shown}")
        benchmark = settings.sets[name].published
        for row in () if benchmark is None else ERRORS[benchmark]:
            charges = "–" if row.charges is None else row.charges
            shown = f"{row.energy} / {row.forces} / {charges}"
            lines.append(f"{name}, {row.model}, {benchmark}, {DATA[str(benchmark)]}: {shown}")
    heading = "Energy (meV/atom) / forces (meV/Å) / charges (me). "
    return heading + "; ".join(lines) + f". Published by {KO}, and {UNKE}."


def energy_figure(one: Any) -> Any:
    """Predicted energies against labels, by model."""
    models = list(one.predicted)
    figure, panels = plt.subplots(
        1, len(models), figsize=(3.2 * len(models), 3.2), layout="constrained", squeeze=False
    )
    members = groups(one.frames)
    offset = one.given.energies.mean() if len({f for f, _ in members}) == 1 else None
    for panel, model in zip(panels[0], models, strict=True):
        for k, ((formula, net), index) in enumerate(members.items()):
            zero = one.given.energies[index].mean() if offset is None else offset
            x = one.given.energies[index] - zero
            y = one.predicted[model][0].energies[index] - zero
            face = "none" if k else COLORS[model]
            panel.plot(x, y, "o", ms=4, mec=COLORS[model], mfc=face, label=f"{formula} {net:+.0f}")
        panel.axline((0.0, 0.0), slope=1.0, color=REFERENCE, lw=0.8)
        panel.set(title=LABELS[model], xlabel="reference / eV/atom")
        panel.legend(frameon=False, fontsize=7)
    panels[0, 0].set(ylabel="predicted / eV/atom")
    return figure


def curve_figure(found: Curves) -> Any:
    figure, panels = plt.subplots(1, 2, figsize=(9.0, 3.6), layout="constrained")
    low, high = np.argsort(found.charges)
    for name, energies in found.energies.items():
        color = COLORS.get(name, REFERENCE)
        style = {"marker": "o", "ms": 3.5, "ls": "none"} if name == "reference" else {"lw": 1.2}
        for k, dashes in ((low, (4, 2)), (high, ())):
            label = f"{LABELS.get(name, 'reference')}, {found.charges[k]:+.0f} e"
            own = style | ({} if name == "reference" else {"dashes": dashes})
            if name == "reference" and k == low:
                own |= {"mfc": "none"}
            centered = 1e3 * (energies[k] - energies[k].mean())
            panels[0].plot(found.distances, centered, color=color, label=label, **own)
        difference = 1e3 * (energies[high] - energies[low])
        panels[1].plot(
            found.distances, difference - difference[0], color=color,
            label=LABELS.get(name, "reference"), **style,
        )  # fmt: skip
    panels[0].set(xlabel="distance / Å", ylabel="energy / meV")
    panels[1].set(xlabel="distance / Å", ylabel="what the charge costs / meV")
    for panel in panels:
        panel.legend(frameon=False, fontsize=7)
    return figure


def charge_figure(one: Any) -> Any:
    """Structures seen from where they are widest, colored by charges: reference and models."""
    members = groups(one.frames)
    columns: dict[str, Answers] = {"reference": one.given}
    columns |= {m: p[0] for m, p in one.predicted.items() if p[0].charges is not None}
    figure, panels = plt.subplots(
        len(members), len(columns), figsize=(3.4 * len(columns), 2.3 * len(members)),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    given = np.concatenate(one.given.charges or [np.ones(1)])
    norm = Normalize(-np.abs(given).max(), np.abs(given).max())
    for row, ((formula, net), index) in zip(panels, members.items(), strict=True):
        atoms = one.frames[index[0]]
        centered = atoms.positions - atoms.positions.mean(axis=0)
        flat = centered @ np.linalg.svd(centered)[2].T
        order = np.argsort(flat[:, 2])
        sizes = 900.0 * covalent_radii[atoms.numbers] ** 2 / max(np.ptp(flat[:, 0]), 3.0)
        for panel, (name, found) in zip(row, columns.items(), strict=True):
            charges = None if found.charges is None else found.charges[index[0]]
            if charges is not None:
                panel.scatter(
                    flat[order, 0], flat[order, 1], s=sizes[order], c=charges[order], norm=norm,
                    cmap="coolwarm_r", edgecolors="0.3", linewidths=0.6,
                )  # fmt: skip
                for (x, y, _), q in zip(flat, charges, strict=True):
                    panel.annotate(f"{q:+.2f}", (x, y), ha="center", va="center", fontsize=6)
            panel.set(title=f"{LABELS.get(name, 'reference')}, {formula} {net:+.0f} e")
            panel.set_aspect("equal")
            reach = 0.5 * np.ptp(flat[:, 0]) + 1.0
            height = max(0.5 * np.ptp(flat[:, 1]) + 1.0, 0.4 * reach)
            middle = 0.5 * (flat.min(axis=0) + flat.max(axis=0))
            panel.set_xlim(middle[0] - reach, middle[0] + reach)
            panel.set_ylim(middle[1] - height, middle[1] + height)
            panel.axis("off")
            panel.title.set_fontsize(8)
    return figure


def error_figure(settings: ChargeTransferConfig, outcomes: dict[str, Any]) -> Any:
    figure, panels = plt.subplots(1, 3, figsize=(11.0, 3.4), layout="constrained")
    units = {"energy": "meV/atom", "forces": "meV/Å", "charges": "me"}
    for panel, (label, unit) in zip(panels, units.items(), strict=True):
        for place, (name, one) in enumerate(outcomes.items()):
            for k, (model, found) in enumerate(one.squares.items()):
                values = getattr(found, label)
                if values is not None:
                    value, error = rmse(values)
                    panel.bar(place + 0.2 * k - 0.3, value, 0.18, yerr=error, color=COLORS[model])
            benchmark = settings.sets[name].published
            for row, style in zip(
                () if benchmark is None else ERRORS[benchmark], ("--", ":", "-."), strict=False
            ):
                height = getattr(row, label)
                if height is not None:
                    ends = [place - 0.42, place + 0.42]
                    panel.plot(ends, [height] * 2, style, color=REFERENCE, lw=1)
        panel.set_xticks(range(len(outcomes)), list(outcomes))
        panel.set(ylabel=f"error of {label} / {unit}", yscale="log")
    shown = [m for m in LABELS if any(m in one.squares for one in outcomes.values())]
    handles = [Patch(color=COLORS[m]) for m in shown]
    panels[0].legend(handles, [LABELS[m] for m in shown], frameon=False, fontsize=7)
    return figure


def conservation_figure(moved: dict[str, Any]) -> Any:
    figure, panels = plt.subplots(
        1, len(moved), figsize=(4.6 * len(moved), 3.2), layout="constrained", squeeze=False
    )
    for panel, (name, one) in zip(panels[0], moved.items(), strict=True):
        panel.plot(one.time_ps, one.kinetic - one.kinetic[0], color="0.7", lw=0.7, label="kinetic")
        panel.plot(one.time_ps, one.energy, color=COLORS["celli"], lw=1.0, label="total")
        panel.set(title=name, xlabel="t / ps", ylabel="energy less the first / meV/atom")
        panel.legend(frameon=False, fontsize=8)
    return figure


def cost_figure(costs: dict[int, dict[str, tuple[float, float]]]) -> Any:
    figure, panel = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    for model in next(iter(costs.values())):
        times = [1e3 * row[model][0] for row in costs.values()]
        panel.plot(list(costs), times, "o-", color=COLORS[model], label=LABELS[model])
    panel.set(xlabel="atoms", ylabel="time per step / ms", xscale="log", yscale="log")
    panel.legend(frameon=False, fontsize=8)
    return figure
