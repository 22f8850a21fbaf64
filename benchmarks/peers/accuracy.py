"""Errors after equal wall time on silicon and germanium, beside mace-torch and nequip-allegro.

One training per call, on one core in float32; every result is a line of JSON in `--out`, and
without a model the lines become a table::

    python -m venv mace && mace/bin/pip install torch==2.13.0 mace-torch==0.3.16 matscipy
    python -m venv allegro && allegro/bin/pip install torch==2.13.0 nequip-allegro==0.8.3
    python benchmarks/peers/accuracy.py si "MACE" --seconds 900 --out lines.jsonl
    mace/bin/python benchmarks/peers/accuracy.py si "mace-torch" --seconds 900 --out lines.jsonl
    python benchmarks/peers/accuracy.py --out lines.jsonl

With `--epochs` instead of `--seconds`, `--seed` and `--save`, members of a committee, whose mean is
another line (`--committee FOLDER FOLDER ...`) or teaches one network (`--teachers FOLDER FOLDER
...`). With `--device cuda` on a GPU instead, where no side uses TF32.

All see the same data (MOSAICMD_DATA, see :data:`mosaicmd.kernel.registry`), loss and schedule:
a rate that rises over the first 2 % of the time and falls along a cosine to zero at its end, and
an exponential average of the parameters. The optimiser is AdamW (its decay of weights is zero
unless asked for), or for ours, whose weights are matrices, Muon (`--optimizer muon`). The clock
starts with the first step, so compiling is part of it; reading data and making neighbor lists is
not. Nothing is chosen by validation: what is evaluated is the average that the last step left.
"""

import argparse
import json
import math
import os
import time
import warnings
from pathlib import Path

import numpy as np

GPA = 0.006241509074
WEIGHTS = {"energy": 10.0, "forces": 1.0, "stress": 500.0}  # of (eV/atom)², (eV/Å)², (eV/Å³)²
AVERAGE = 0.99
MACE = {"n_channels": 64, "hidden_l_max": 0, "l_max": 3}
NEQUIP = {"n_features": 32, "l_max": 2, "n_layers": 3, "parity": False}
ALLEGRO = {"n_scalars": 64, "n_tensors": 16, "l_max": 2, "n_layers": 2}
RECIPES = {  # side, model, its settings, highest learning rate with AdamW
    "MACE": ("ours", "mace", MACE, 0.01),
    "NequIP": ("ours", "nequip", NEQUIP, 0.01),
    "Allegro": ("ours", "allegro", ALLEGRO, 0.005),
    "PaiNN": ("ours", "painn", {}, 0.002),
    "DimeNet++": ("ours", "dimenet", {"n_features": 32}, 0.002),
    "mace-torch": ("torch", "mace", MACE, 0.01),
    "nequip-allegro": ("torch", "allegro", ALLEGRO, 0.005),
}
MUON_RATE = 0.08
EXCHANGED = [0, 1, 2, 4, 3, 5]
"""Order of the stresses (Voigt) of all groups but `Elastic`, whose yz and xz components stand in
each other's place, as :func:`mosaicmd.kernel.label_checks.check_stress_by_group` finds, and as a
network finds that learned energies and forces alone: 0.2 GPa from these labels when they are
exchanged, 1.0 GPa as they are."""
BATCH = 2  # structures
FOR_OURS = ("epochs", "seed", "save", "start", "teachers")


def structures(element, part):
    import ase.io

    folder = os.environ.get("MOSAICMD_DATA")
    if folder is None:
        raise SystemExit("set MOSAICMD_DATA to the folder with si_train.extxyz.gz and the others")
    frames = ase.io.read(Path(folder) / f"{element}_{part}.extxyz.gz", ":")
    for atoms in frames:
        if atoms.info["group"] != "Elastic":
            atoms.calc.results["stress"] = atoms.get_stress()[EXCHANGED]
    return frames


def rate_at(share, highest):
    """The learning rate after a share of the time."""
    return highest * min(1.0, share / 0.02) * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))


def examples_of(element, cutoff):
    """Structures for training and test in float32, with the same energies of atoms taken off."""
    from mosaicmd.kernel.data import labels_of
    from mosaicmd.kernel.examples import make_examples
    from mosaicmd.kernel.reference_energies import fit_reference_energies
    from mosaicmd.kernel.systems import from_ase

    frames = {part: structures(element, part) for part in ("train", "test")}
    data = {p: [(from_ase(a), labels_of(a)) for a in some] for p, some in frames.items()}
    references, _ = fit_reference_energies(data["train"])
    options = {"cutoff": cutoff, "reference_energies": references, "dtype": np.float32}
    examples = {part: make_examples(one, **options) for part, one in data.items()}
    return examples, list(references)


def labelled_copies(examples, given):
    """The structures with atoms displaced at random, labelled by the mean of saved models."""
    import jax
    import jax.numpy as jnp

    from mosaicmd.kernel.data import Labels
    from mosaicmd.kernel.examples import make_examples
    from mosaicmd.kernel.graphs import pad_graph
    from mosaicmd.kernel.potentials import evaluate
    from mosaicmd.kernel.systems import pad_system

    rng, copies = np.random.default_rng(given.seed), []
    for one in examples:
        positions = one.system.positions
        shifts = rng.uniform(0.02, 0.15) * rng.normal(size=positions.shape)  # Å
        moved = one.system._replace(positions=positions + shifts.astype(np.float32))
        copies.append((moved, Labels(0.0, np.zeros(positions.shape), np.zeros((3, 3)))))
    copies = make_examples(copies, given.cutoff, dtype=np.float32)
    n_atoms = max(one.system.n_atoms for one in copies) + 1
    n_edges = max(one.graph.n_edges for one in copies)
    mean, params = mean_of(given.teachers)
    params = jax.tree.map(jnp.float32, params)
    label = jax.jit(lambda system, graph: evaluate(mean.energy, params, system, graph, stress=True))
    for k, one in enumerate(copies):
        system, graph, targets = jax.tree.map(jnp.asarray, one)
        found = label(pad_system(system, n_atoms), pad_graph(graph, n_edges, n_atoms=n_atoms))
        forces = found.forces[: system.n_atoms]
        targets = targets._replace(energy=found.energy, forces=forces, stress=found.stress)
        copies[k] = one._replace(targets=jax.tree.map(np.asarray, targets))
    return copies


def mean_of(folders):
    """The mean of saved models, and its parameters."""
    from mosaicmd.gnn_models import scaled
    from mosaicmd.kernel.model_files import load_model
    from mosaicmd.kernel.potentials import sum_potentials

    members, params = zip(*(load_model(one) for one in folders), strict=True)
    return scaled(sum_potentials(*members), 1.0 / len(members)), params


def ours(recipe, given):
    import jax
    import jax.numpy as jnp
    import optax

    from mosaicmd.gnn_models import scaled
    from mosaicmd.kernel.batches import Batches, prefetch
    from mosaicmd.kernel.compilation import tune_compiler
    from mosaicmd.kernel.force_matching import MatchingLoss, evaluate_labels, force_matching
    from mosaicmd.kernel.model_files import load_model, save_model
    from mosaicmd.kernel.muon import muon
    from mosaicmd.kernel.potentials import build_potential

    _, model, settings, highest = recipe
    tune_compiler()
    jax.config.update("jax_platforms", given.device)
    jax.config.update("jax_default_matmul_precision", "highest")
    examples, species = examples_of(given.element, given.cutoff)
    forces = np.concatenate([np.ravel(one.targets.forces) for one in examples["train"]])
    n_edges = sum(one.graph.n_edges for one in examples["train"])
    neighbors = n_edges / sum(one.system.n_atoms for one in examples["train"])
    config = {"species": species, "cutoff": given.cutoff, **settings}
    if model not in ("painn", "dimenet"):
        config["mean_neighbors"] = neighbors
    potential = scaled(build_potential(model, config), float(np.sqrt(np.mean(forces**2))))
    params = potential.init(jax.random.key(given.seed))
    if given.start is not None:
        potential, params = load_model(given.start)
    params = jax.tree.map(jnp.float32, params)
    if given.teachers:
        examples["train"] += labelled_copies(examples["train"], given)
    batches = Batches(examples["train"], BATCH, seed=given.seed)
    algorithm = force_matching(
        potential.energy,
        MatchingLoss(**WEIGHTS | given.weights),
        optax.inject_hyperparams({"adamw": optax.adamw, "muon": muon}[given.optimizer])(
            learning_rate=0.0, weight_decay=given.weight_decay
        ),
        average_decay=AVERAGE,
        max_gradient_norm=10.0,
    )
    fetch, state, n_steps = prefetch(batches), algorithm.init(params), 0
    start = time.perf_counter()

    def spent():
        if given.epochs is not None:
            return n_steps / (given.epochs * batches.steps_per_epoch)
        return (time.perf_counter() - start) / given.seconds

    while (share := spent()) < 1.0:
        state.optimizer.hyperparams["learning_rate"] = np.float32(rate_at(share, highest))
        state, metrics = algorithm.step(state, fetch(n_steps + 1))
        n_steps += 1
        if n_steps % batches.steps_per_epoch == 0:
            print(f"{share:.2f} {metrics['rmse_forces_mev_per_angstrom']:.1f}", flush=True)
    if given.save is not None:
        save_model(given.save, potential, state.best)
    held_out = Batches(examples["test"], BATCH, shuffle=False)
    found = evaluate_labels(potential.energy, state.best, held_out)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return found | {"epochs": n_steps / batches.steps_per_epoch, "parameters": size}


def committee(given):
    """Errors of the mean of saved models of ours."""
    import jax

    from mosaicmd.kernel.batches import Batches
    from mosaicmd.kernel.force_matching import evaluate_labels

    jax.config.update("jax_platforms", given.device)
    examples, _ = examples_of(given.element, given.cutoff)
    mean, params = mean_of(given.committee)
    found = evaluate_labels(mean.energy, params, Batches(examples["test"], BATCH, shuffle=False))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return found | {"epochs": 0, "parameters": size}


def peer(recipe, given):
    from _torch_models import TorchModel, torch_of_one_thread
    from ase.neighborlist import neighbor_list

    _, model, settings, highest = recipe
    element, device = given.element, given.device
    torch = torch_of_one_thread()
    torch.manual_seed(0)
    train, test = structures(element, "train"), structures(element, "test")
    forces = np.concatenate([np.ravel(one.get_forces()) for one in train])
    edges = sum(len(neighbor_list("i", one, given.cutoff)) for one in train)
    side = TorchModel(
        model,
        settings,
        given.cutoff,
        train[0].symbols[0],
        reference=np.mean([one.get_potential_energy() / len(one) for one in train]),
        scale=float(np.sqrt(np.mean(forces**2))),
        neighbors=edges / sum(map(len, train)),
        compiled=given.compiled,
        device=device,
    )
    for one in train + test:
        side.graph(one)
    optimizer = torch.optim.AdamW(side.parameters, lr=0.0, weight_decay=given.weight_decay)
    average = [p.detach().clone() for p in side.parameters]
    rng, n_steps, order = np.random.default_rng(0), 0, []
    labels = {id(one): tensors_of(torch, one, device) for one in train + test}
    start = time.perf_counter()
    while (share := (time.perf_counter() - start) / given.seconds) < 1.0:
        if not order:
            order = list(rng.permutation(len(train)))
        chosen = [train[order.pop()] for _ in range(min(BATCH, len(order)))]
        for group in optimizer.param_groups:
            group["lr"] = rate_at(share, highest)
        deviations = compare(torch, side, chosen, labels, training=True)
        weights = WEIGHTS | given.weights
        loss = sum(weights[name] * (one**2).mean() for name, one in deviations.items())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(side.parameters, 10.0)
        optimizer.step()
        n_steps += 1
        decay = min(AVERAGE, n_steps / (n_steps + 1))
        with torch.no_grad():
            for mean, p in zip(average, side.parameters, strict=True):
                mean.lerp_(p, 1.0 - decay)
        if n_steps % 50 == 0:
            print(f"{share:.2f} {1e3 * float((deviations['forces'] ** 2).mean()) ** 0.5:.1f}")
    with torch.no_grad():
        for mean, p in zip(average, side.parameters, strict=True):
            p.copy_(mean)
    found = [compare(torch, side, [one], labels, training=False) for one in test]
    units = {"energy": ("mev_per_atom", 1e-3), "forces": ("mev_per_angstrom", 1e-3)}
    units["stress"] = ("gpa", GPA)
    metrics = {}
    for name, (unit, size) in units.items():
        every = np.concatenate([np.ravel(one[name].detach().cpu().numpy()) for one in found]) / size
        metrics[f"mae_{name}_{unit}"] = float(np.mean(np.abs(every)))
        metrics[f"rmse_{name}_{unit}"] = float(np.sqrt(np.mean(every**2)))
    epochs = n_steps * BATCH / len(train)
    return metrics | {"epochs": epochs, "parameters": side.size}


def tensors_of(torch, atoms, device):
    values = (
        [atoms.get_potential_energy()],
        atoms.get_forces(),
        [atoms.get_stress(voigt=False)],
    )
    return [torch.tensor(np.array(one), device=device) for one in values]


def compare(torch, side, atoms, labels, training):
    """Deviations of energy per atom, forces and stress."""
    energy, forces, stress = side(side.batch(atoms), training)
    wanted = [torch.cat(parts) for parts in zip(*(labels[id(one)] for one in atoms), strict=True)]
    sizes = torch.tensor([float(len(one)) for one in atoms], device=energy.device)
    return {
        "energy": (energy - wanted[0]).float() / sizes,
        "forces": forces - wanted[1].float(),
        "stress": stress - wanted[2].float(),
    }


def table(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    print(
        "| data | model | parameters | epochs | energy MAE, RMSE / meV/atom "
        "| forces MAE, RMSE / meV/Å | stress MAE, RMSE / GPa |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for one in sorted(lines, key=lambda one: (one["element"], one["mae_forces_mev_per_angstrom"])):
        pairs = [
            f"{one[f'mae_{name}']:.{d}f}, {one[f'rmse_{name}']:.{d}f}"
            for name, d in (
                ("energy_mev_per_atom", 1),
                ("forces_mev_per_angstrom", 1),
                ("stress_gpa", 2),
            )
        ]
        name = one["model"] + ", Muon" * (one.get("optimizer") == "muon")
        head = f"| {one['element'].capitalize()} | {name} | {one['parameters']} "
        print(f"{head}| {one['epochs']:.0f} | {' | '.join(pairs)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("element", nargs="?", choices=["si", "ge"])
    parser.add_argument("model", nargs="?", choices=list(RECIPES))
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--settings", type=json.loads, default={}, help="changes, as JSON")
    parser.add_argument("--weights", type=json.loads, default={}, help="changes, as JSON")
    parser.add_argument("--cutoff", type=float, default=4.2, help="Å [beyond second neighbors]")
    parser.add_argument("--compiled", action="store_true", help="nequip-allegro: torch.compile")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--optimizer", default="adamw", choices=["adamw", "muon"])
    parser.add_argument("--rate", type=float, help="highest learning rate [of AdamW; Muon: 0.08]")
    parser.add_argument(
        "--weight-decay", type=float, default=0.0, help="of weights, times the rate"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, help="instead of `--seconds`, of ours")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches of ours")
    parser.add_argument("--save", type=Path, help="folder for a model of ours")
    parser.add_argument("--start", type=Path, help="folder of a model of ours to start from")
    parser.add_argument(
        "--teachers",
        type=Path,
        nargs="+",
        help="folders of models whose mean labels a displaced copy of each structure",
    )
    parser.add_argument(
        "--committee", type=Path, nargs="+", help="folders of models whose mean is evaluated"
    )
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.committee:
        record(
            given, {"model": "mean of " + ", ".join(map(str, given.committee))}, committee(given)
        )
        return None
    if given.model is None:
        return table(given.out)
    side, model, settings, rate = RECIPES[given.model]
    if given.optimizer == "muon":
        rate = MUON_RATE
    recipe = (side, model, settings | given.settings, given.rate or rate)
    about = {"model": given.model, "settings": recipe[2], "rate": recipe[3]}
    about |= {
        "cutoff": given.cutoff,
        "weights": WEIGHTS | given.weights,
        "optimizer": given.optimizer,
        "weight_decay": given.weight_decay,
    }
    if side == "ours":
        about |= {"seed": given.seed, "teachers": [str(one) for one in given.teachers or ()]}
        found = ours(recipe, given)
    elif given.optimizer == "muon" or any(getattr(given, name) for name in FOR_OURS):
        parser.error("--optimizer muon, --" + ", --".join(FOR_OURS) + " are for models of ours")
    else:
        about |= {"compiled": given.compiled}
        found = peer(recipe, given)
    record(given, about, found)
    return None


def record(given, about, found):
    """Add a line to ``--out``."""
    seconds = None if given.epochs or given.committee else given.seconds
    found = {"element": given.element, "seconds": seconds, "device": given.device} | found | about
    print(json.dumps(found))
    with given.out.open("a") as file:
        file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
