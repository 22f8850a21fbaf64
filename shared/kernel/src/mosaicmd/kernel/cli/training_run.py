"""`mosaicmd train`: from a configuration to a model, its errors and a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mosaicmd.kernel.adapters import adapted, low_rank_adapters, merge_adapters
from mosaicmd.kernel.batches import Batches, prefetch
from mosaicmd.kernel.cli.label_report import compare_labels, write_label_report
from mosaicmd.kernel.cli.labelled_files import Data, read_splits, require_right_stress
from mosaicmd.kernel.cli.optimizers import build_optimizer, frozen_leaves
from mosaicmd.kernel.cli.training_config import AdapterConfig, LossConfig, TrainingConfig
from mosaicmd.kernel.config import ConfigError, suggest
from mosaicmd.kernel.dispersion import (
    D3BJ,
    DispersionConfig,
    dispersion,
    subtract_dispersion,
)
from mosaicmd.kernel.early_stopping import stop_when_stale, watch
from mosaicmd.kernel.examples import Example, labels_present, make_examples
from mosaicmd.kernel.force_matching import force_matching
from mosaicmd.kernel.label_errors import MatchingLoss, Term
from mosaicmd.kernel.metrics import read_metrics
from mosaicmd.kernel.model_files import load_model, save_model
from mosaicmd.kernel.potentials import Params, Potential, build_potential, sum_potentials
from mosaicmd.kernel.precision import array_type, with_precision
from mosaicmd.kernel.reference_energies import atomic_energies, fit_reference_energies
from mosaicmd.kernel.report import Metric
from mosaicmd.kernel.run_folders import claim
from mosaicmd.kernel.training import train

REFERENCE = "atomic_energies"


class Model(NamedTuple):
    """A potential without what is subtracted from labels, and this."""

    potential: Potential
    params: Params
    reference_energies: dict[int, float] | None  # eV by species
    dispersion: DispersionConfig | None = None


def run_training(config: TrainingConfig, out: Path, *, quiet: bool = False) -> dict[str, Metric]:
    """Train, and write everything into a folder; the same call again resumes or repeats it.

    The folder gets ``config.yaml``, ``data.json`` (checksums of the files), ``checkpoints/``,
    ``metrics.jsonl``, ``model/``, ``results.json`` and ``report.html``.

    Returns:
        The errors of all splits.

    Raises:
        ConfigError: for settings or labels that cannot be used, and a folder that holds a
            run of other settings or other data.
    """
    claim(out, config, {str(f.path): f.path for fs in config.data.files().values() for f in fs})
    splits = read_splits(config.data, config.seed)
    if (correction := starting_model(config, None).dispersion) is not None:
        splits = {name: subtract_dispersion(part, correction) for name, part in splits.items()}
    model = starting_model(config, splits["train"])
    for data in splits.values():
        for system, _ in data:
            model.potential.check(system)
    cutoff, energies = model.potential.cutoff, model.reference_energies
    dtype = array_type(config.precision)
    examples = {
        name: make_examples(data, cutoff, reference_energies=energies, dtype=dtype)
        for name, data in splits.items()
    }
    loss = matching_loss(config.loss, examples)
    if "charges" in loss.labels and model.potential.charges is None:
        raise ConfigError(
            f"loss.charges: the potential {model.potential.architecture!r} predicts no charges; "
            "set the weight to 0, or take one that does"
        )
    if config.check_stress and not (out / "checkpoints").exists():
        require_right_stress(examples["train"], config.seed)
    if config.adapters is None:
        learned = _fit(config, model, loss, examples, out, quiet)
    else:
        tuned = _with_adapters(config.adapters, model, config.seed)
        change = _fit(config, tuned, loss, examples, out, quiet)
        learned = merge_adapters(model.params, change)
    complete = with_reference(model._replace(params=learned))
    save_model(
        out / "model",
        complete.potential,
        complete.params,
        training={"config": config.model_dump(mode="json"), "data": _sizes(splits)},
        overwrite=True,
    )
    pairs = {
        name: compare_labels(
            model.potential,
            learned,
            part,
            batch_size=config.batch_size,
            separate=config.separate,
        )
        for name, part in examples.items()
    }
    less = ["reference energies"] * bool(energies) + ["dispersion"] * bool(correction)
    text = "Energies are per atom" + (f", less {' and '.join(less)}." if less else ".")
    return write_label_report(
        out,
        f"Training of {out.name}",
        pairs,
        history=read_metrics(out / "metrics.jsonl"),
        text=text,
        n_structures=_sizes(splits),
        reference_energies_ev={str(label): e for label, e in (energies or {}).items()},
    )


def starting_model(config: TrainingConfig, data: Data | None) -> Model:
    """The potential to train with its initial parameters, and reference energies.

    Args:
        config: which says where they come from.
        data: to fit reference energies to; ``None`` leaves them out.

    Raises:
        ConfigError: for a potential that cannot be built.
    """
    kept: dict[int, float] | None = None
    correction = config.dispersion
    if config.init_from is not None:
        potential, params, kept, found = without_reference(*load_model(config.init_from))
        correction = found if correction is None else correction
    else:
        potential = _potential(config)
        params = potential.init(jax.random.key(config.seed))
    potential = with_precision(potential, config.precision)
    dtype = array_type(config.precision)
    params = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
        jax.tree.map(jnp.asarray, params),
    )
    if config.freeze:
        frozen_leaves(params, config.freeze)
    if config.adapters is not None:
        _with_adapters(config.adapters, Model(potential, params, None), config.seed)
    match config.reference_energies:
        case "keep":
            energies = kept
        case "none":
            energies = None
        case "fit":
            has_energies = any(labels.energy is not None for _, labels in data or ())
            energies = fit_reference_energies(data)[0] if data and has_energies else None
        case given:
            energies = {species_label(symbol): energy for symbol, energy in given.items()}
    if correction is not None:
        dispersion(correction)  # is known
    return Model(potential, params, energies, correction)


def without_reference(potential: Potential, params: Params) -> Model:
    """A model taken apart: reference energies and dispersion are subtracted from labels."""
    if potential.architecture != "sum":
        return Model(potential, params, None)
    terms = potential.config["terms"]
    energies: dict[int, float] = {}
    correction = None
    kept = []
    for term, own in zip(terms, params, strict=True):
        if term["architecture"] == REFERENCE:
            for label, energy in term["config"]["energies"].items():
                energies[int(label)] = energies.get(int(label), 0.0) + energy
        elif term["architecture"] == D3BJ:
            correction = DispersionConfig(**term["config"])
        else:
            kept.append((build_potential(term["architecture"], term["config"]), own))
    if not kept or len(kept) == len(terms):
        return Model(potential, params, None)
    if len(kept) == 1:
        potential, params = kept[0]
    else:
        potential = sum_potentials(*(term for term, _ in kept))
        params = tuple(own for _, own in kept)
    return Model(potential, params, energies or None, correction)


def with_reference(model: Model) -> Model:
    """The opposite of :func:`without_reference`: energies as labels have them."""
    rest = [] if model.dispersion is None else [dispersion(model.dispersion)]
    if model.reference_energies:
        rest.append(atomic_energies(model.reference_energies))
    if not rest:
        return model
    parts, params = [model.potential], [model.params]
    if model.potential.architecture == "sum":  # one flat sum, so that it comes apart again
        parts = [
            build_potential(t["architecture"], t["config"]) for t in model.potential.config["terms"]
        ]
        params = list(model.params)
    total = sum_potentials(*parts, *rest)
    return Model(total, (*params, *(term.init(jax.random.key(0)) for term in rest)), None)


def matching_loss(config: LossConfig, examples: Mapping[str, Sequence[Example]]) -> MatchingLoss:
    """The loss of a configuration, checked against the labels of all splits.

    Raises:
        ConfigError: for labels that it forgets, or that no structure has.
    """
    terms = {
        name: None if term is None else Term(term.weight, term.huber)
        for name, term in ((name, getattr(config, name)) for name in LossConfig.model_fields)
    }
    try:
        loss = MatchingLoss(**terms)
    except ValueError as error:
        raise ConfigError(f"loss: {error}") from error
    for split, part in examples.items():
        present = labels_present(part)
        if forgotten := [label for label in present if getattr(config, label) is None]:
            raise ConfigError(
                f"loss: the structures of `{split}` have labels {forgotten} without a weight; add "
                f"`{forgotten[0]}: 1.0` to `loss`, or `{forgotten[0]}: 0` to leave it out"
            )
        if absent := [label for label in loss.labels if label not in present]:
            raise ConfigError(
                f"loss: no structure of `{split}` has the labels {absent}, which have a weight; "
                f"it has {list(present)}"
            )
    return loss


def _fit(
    config: TrainingConfig,
    model: Model,
    loss: MatchingLoss,
    examples: Mapping[str, Sequence[Example]],
    out: Path,
    quiet: bool,
) -> Params:
    batches = Batches(
        examples["train"], config.batch_size, seed=config.seed, separate=config.separate
    )
    validation = None
    if "validation" in examples:
        validation = Batches(
            examples["validation"], config.batch_size, shuffle=False, separate=config.separate
        )
    n_steps = config.steps or (config.epochs or 0) * batches.steps_per_epoch
    algorithm = force_matching(
        model.potential.energy,
        loss,
        build_optimizer(
            config.optimizer,
            n_steps,
            model.params,
            max_gradient_norm=config.max_gradient_norm,
            freeze=config.freeze,
        ),
        charges_fn=model.potential.charges,
        average_decay=config.average_decay,
        validation=validation,
        validate_every=min(config.validate_every or batches.steps_per_epoch, n_steps),
    )
    callbacks = []
    if config.patience is not None:
        algorithm = watch(algorithm, "validation/loss")
        callbacks.append(stop_when_stale(config.patience))
    state = train(
        algorithm,
        model.params,
        n_steps,
        batches=prefetch(batches),
        callbacks=callbacks,
        directory=out,
        every=config.checkpoint_every or batches.steps_per_epoch,
        description=out.name,
        quiet=quiet,
    )
    learned = (state if config.patience is None else state.inner).best
    if not config.freeze:
        return learned
    held = frozen_leaves(model.params, config.freeze)  # an average would round them
    return jax.tree.map(lambda h, new, old: old if h else new, held, learned, model.params)


def _with_adapters(config: AdapterConfig, model: Model, seed: int) -> Model:
    """The model as a function of adapters, which change nothing yet."""
    key = jax.random.key(seed)
    try:
        adapters = low_rank_adapters(model.params, config.patterns, rank=config.rank, key=key)
    except ValueError as error:
        raise ConfigError(f"adapters: {error}") from error
    potential = model.potential
    charges = None if potential.charges is None else adapted(potential.charges, model.params)
    energy = adapted(potential.energy, model.params)
    potential = dataclasses.replace(potential, energy=energy, charges=charges)
    return model._replace(potential=potential, params=adapters)


def _potential(config: TrainingConfig) -> Potential:
    terms = []
    for term in config.potential or ():
        if term.architecture in (REFERENCE, D3BJ, "sum"):
            raise ConfigError(
                f"potential: {term.architecture!r} is not given here: list several terms for a "
                "sum, and set `reference_energies` and `dispersion`"
            )
        try:
            terms.append(build_potential(term.architecture, term.config))
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"potential: {term.architecture}: {error}") from error
    return terms[0] if len(terms) == 1 else sum_potentials(*terms)


def species_label(symbol: str) -> int:
    """A species label from an element symbol or digits."""
    from ase.data import atomic_numbers

    if symbol in atomic_numbers:
        return atomic_numbers[symbol]
    if symbol.isdigit():
        return int(symbol)
    raise ConfigError(
        f"reference_energies: {symbol!r} is neither a label nor an element"
        f"{suggest(symbol, atomic_numbers)}"
    )


def _sizes(splits: Mapping[str, Data]) -> dict[str, int]:
    return {name: len(data) for name, data in splits.items()}
