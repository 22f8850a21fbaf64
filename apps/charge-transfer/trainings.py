"""From labelled structures to models: what is held out, and one training per model."""

import dataclasses
import functools
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import optax
from settings import FitConfig, SetConfig

from mosaicmd.gnn_models.pairs import species_index
from mosaicmd.kernel.batches import Batches, prefetch
from mosaicmd.kernel.cli.training_run import Model, with_reference
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.data import Labels, read_structures, read_systems
from mosaicmd.kernel.examples import LABELS, Example, make_examples
from mosaicmd.kernel.files import atomic_write_text
from mosaicmd.kernel.force_matching import force_matching
from mosaicmd.kernel.label_errors import MatchingLoss, predict
from mosaicmd.kernel.model_files import load_model, save_model
from mosaicmd.kernel.muon import muon
from mosaicmd.kernel.potentials import Params, Potential, build_potential
from mosaicmd.kernel.reference_energies import fit_reference_energies
from mosaicmd.kernel.slots import SlotFormat, join
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.training import train
from mosaicmd.qeq_longrange import CoulombPlan, plan_coulomb
from mosaicmd.qeq_longrange.learned_charges import ChargesConfig

Data = list[tuple[System, Labels]]


class Parts(NamedTuple):
    """Files of the structures to learn from, and of those held out."""

    train: Path
    test: Path


def divide(settings: SetConfig, file: Path, folder: Path, name: str, seed: int) -> Parts:
    """Hold out some structures of every group, at random, and write both parts."""
    parts = Parts(*(folder / f"{name}-{part}.extxyz" for part in ("train", "test")))
    if all(part.exists() for part in parts):
        return parts
    frames: list[Any] = read_structures(file, names=settings.names or None)
    chosen = set()
    for k, members in enumerate(groups(frames).values()):
        order = np.random.default_rng([seed, k]).permutation(len(members))
        n = round(settings.test * len(members))
        if n < 1 or len(members) - n < 2:
            raise ConfigError(
                f"sets.{name}.test: {settings.test} of the {len(members)} structures of a group in "
                f"{file} leaves too few to test or to learn; label more, or change the share"
            )
        chosen |= {members[i] for i in order[:n]}
    for part, held_out in zip(parts, (False, True), strict=True):
        text = io.StringIO()
        kept = [atoms for k, atoms in enumerate(frames) if (k in chosen) == held_out]
        ase.io.write(text, kept, format="extxyz")
        part.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(part, text.getvalue())
    return parts


def groups(frames: list[Any]) -> dict[tuple[str, float], list[int]]:
    """Indices of the structures of equal composition and net charge."""
    found: dict[tuple[str, float], list[int]] = defaultdict(list)
    for k, atoms in enumerate(frames):
        net = float(atoms.info.get("total_charge", 0.0))
        found[atoms.get_chemical_formula(), net].append(k)
    return dict(sorted(found.items()))


def trained(
    settings: SetConfig, model: str, fit: FitConfig, parts: Parts, folder: Path, seed: int
) -> tuple[Potential, Params]:
    """The model of this name in float64; the same call again resumes, or reads what there is."""
    if not (folder / "model").exists():
        learning, validating = divided(settings, parts, seed)
        bare = potential(settings, model, learning + validating)
        params = jax.tree.map(jnp.float32, bare.init(jax.random.key(seed)))
        loss = MatchingLoss(energy=fit.energy, forces=fit.forces, charges=fit.charges)
        without = dataclasses.replace(loss, charges=0.0)
        alone = MatchingLoss(energy=0.0, forces=0.0, charges=1.0)
        run = functools.partial(minimised, bare, fit, (learning, validating), seed)
        match model:
            case "celli":
                params = run(params, alone, fit.charge_steps, folder / "charges")
                references = reference_energies(bare, params, learning + validating)
                params = run(params, loss, fit.steps, folder / "energy", references)
            case "fourth":
                params = run(params, alone, fit.charge_steps, folder / "charges")
                references = reference_energies(bare, params, learning + validating)
                kept = {"charges": params["charges"]}
                params = run(params, without, fit.steps, folder / "energy", references, kept)
            case _:
                references, _ = fit_reference_energies(learning + validating)
                params = run(params, without, fit.steps, folder / "energy", references)
        whole = with_reference(Model(bare, params, references))
        record = {
            "settings": settings.model_dump(mode="json"),
            "learned_from": [len(learning), len(validating)],
        }
        save_model(folder / "model", whole.potential, whole.params, training=record)
    return load_model(folder / "model", dtype="float64")


def minimised(
    potential: Potential,
    fit: FitConfig,
    data: tuple[Data, Data],
    seed: int,
    params: Params,
    loss: MatchingLoss,
    steps: int,
    folder: Path,
    references: dict[int, float] | None = None,
    kept: dict[str, Params] | None = None,
) -> Params:
    """Parameters averaged over steps, at the least loss of the structures for validation.

    Those of the entries in ``kept`` stay what they are.
    """
    kept = kept or {}
    separate = potential.charges is not None
    options = {"batch_size": fit.batch_size, "separate": separate}
    examples = [
        make_examples(part, potential.cutoff, reference_energies=references, dtype=np.float32)
        for part in data
    ]
    batches = Batches(examples[0], seed=seed, **options)
    algorithm = force_matching(
        lambda own, *rest: potential.energy({**own, **kept}, *rest),
        loss,
        muon(optax.cosine_decay_schedule(fit.learning_rate, steps, alpha=0.01)),
        charges_fn=potential.charges,
        max_gradient_norm=10.0,
        validation=Batches(examples[1], shuffle=False, like=batches, **options),
        validate_every=max(1, steps // 40),
    )
    state = train(
        algorithm,
        {name: leaf for name, leaf in params.items() if name not in kept},
        steps,
        batches=prefetch(batches),
        directory=folder,
        every=max(1, steps // 20),
        description=f"{folder.parent.name} {folder.name}",
    )
    return {**state.best, **kept}


def reference_energies(potential: Potential, params: Params, data: Data) -> dict[int, float]:
    """Energies of free atoms that go best with what the charges cost already, eV by species."""
    examples = make_examples(data, potential.cutoff, dtype=np.float32)
    program = jax.jit(lambda slot: predict(potential.energy, params, slot, ("energy",)).energy[0])
    form = slot_format(examples)
    rest = [
        (system, labels._replace(energy=labels.energy - float(program(join([example], form)))))
        for (system, labels), example in zip(data, examples, strict=True)
        if labels.energy is not None
    ]
    return fit_reference_energies(rest)[0]


def slot_format(examples: Sequence[Example]) -> SlotFormat:
    """Room for any one of some structures, so that one program serves all of them."""
    return SlotFormat(
        n_atoms=max(one.system.n_atoms for one in examples) + 1,
        n_edges=max(one.graph.n_edges for one in examples) + 1,
        n_structures=1,
        like=examples[0],
        labels=(),
        scales=dict.fromkeys(LABELS, 1.0),
        separate=True,
        has_charges=False,
        has_total_charge=True,
    )


def divided(settings: SetConfig, parts: Parts, seed: int) -> tuple[Data, Data]:
    """Structures to learn from, and some at random for validation."""
    data = read_systems(parts.train)
    order = np.random.default_rng([seed, 1]).permutation(len(data))
    n = max(1, round(settings.validation * len(data)))
    validating, learning = ([data[i] for i in sorted(part)] for part in (order[:n], order[n:]))
    return learning, validating


def potential(settings: SetConfig, model: str, data: Data) -> Potential:
    """The untrained model of this name of a set, whose structures show the cell, if any."""
    network = {"species": settings.species, **settings.network}
    own = {"species": settings.species, "cutoff": settings.network["cutoff"]}
    charged = {name: getattr(settings, name) for name in ChargesConfig.model_fields}
    charged["plan"] = coulomb(settings, data).model_dump(mode="json")
    match model:
        case "local":
            return build_potential("allegro", network)
        case "mace":
            return build_potential("mace", own | settings.mace)
        case "celli":
            inner = {"architecture": "allegro", "config": network}
            return build_potential("celli", {"network": inner, **charged})
        case _:
            functions = {"symmetry_functions": own | settings.symmetry_functions}
            return build_potential("fourth_generation", {**functions, **charged})


def coulomb(settings: SetConfig, data: Data) -> CoulombPlan:
    """All pairs of a cluster, or a sum over images for cells like those of the structures.

    Raises:
        ConfigError: for structures in different cells, as one plan serves one cell.
    """
    system, labels = data[0]
    for k, (other, _) in enumerate(data):
        same = np.array_equal(system.pbc, other.pbc)
        if not same or (np.any(system.pbc) and not np.allclose(system.cell, other.cell, rtol=0.02)):
            raise ConfigError(
                f"structure {k} of {settings.file} has the cell {np.asarray(other.cell).tolist()}, "
                f"periodic along {np.asarray(other.pbc).tolist()}, and the first "
                f"{np.asarray(system.cell).tolist()}, {np.asarray(system.pbc).tolist()}; divide "
                "them into sets of one cell each"
            )
    widths = np.broadcast_to(settings.widths, len(settings.species))
    return plan_coulomb(
        system,
        accuracy=settings.coulomb_accuracy,
        charges=labels.charges,
        widths=widths[np.asarray(species_index(settings.species, system))],
    )
