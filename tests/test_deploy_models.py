"""Models of gnn-models as calculators and exported programs."""

import ase.build
import jax
import numpy as np
import pytest

from mosaicmd.gnn_models import stillinger_weber
from mosaicmd.gnn_models.allegro import AllegroConfig, allegro
from mosaicmd.gnn_models.dimenet import DimeNetConfig, dimenet
from mosaicmd.gnn_models.lennard_jones import LennardJonesConfig, lennard_jones
from mosaicmd.gnn_models.mace import MACEConfig, mace
from mosaicmd.gnn_models.nequip import NequIPConfig, nequip
from mosaicmd.gnn_models.painn import PaiNNConfig, painn
from mosaicmd.kernel.deploy import ase_calculator, export_model, load_exported
from mosaicmd.kernel.graphs import host_graph, pad_graph
from mosaicmd.kernel.potentials import evaluate
from mosaicmd.kernel.systems import from_ase, pad_system, volume
from mosaicmd.kernel.testing import random_system

LABELS = (1, 8)
MODELS = {
    "lennard_jones": lambda: lennard_jones(
        LennardJonesConfig(
            cutoff=5.0, species=LABELS, epsilon=(0.2, 0.3, 0.4), sigma=(1.8, 2.0, 2.2)
        )
    ),
    "stillinger_weber": lambda: stillinger_weber(epsilon=2.16826, sigma=2.0951, species=LABELS),
    "painn": lambda: painn(
        PaiNNConfig(species=LABELS, cutoff=4.0, n_features=8, n_layers=2, n_radial=6)
    ),
    "allegro": lambda: allegro(
        AllegroConfig(species=LABELS, cutoff=4.0, n_layers=2, n_scalars=8, n_tensors=4)
    ),
    "dimenet": lambda: dimenet(DimeNetConfig(species=LABELS, cutoff=4.0, n_features=8, n_blocks=2)),
    "nequip": lambda: nequip(
        NequIPConfig(species=LABELS, cutoff=4.0, n_features=4, n_layers=2, radial_widths=(8,))
    ),
    "mace": lambda: mace(
        MACEConfig(species=LABELS, cutoff=4.0, n_channels=4, l_max=2, radial_widths=(8,))
    ),
}
TOLERANCES = {"float32": 1e-6, "float64": 1e-12}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("painn", "float32"),
        ("stillinger_weber", "float64"),
        *(
            pytest.param(name, dtype, marks=pytest.mark.slow)
            for name in MODELS
            for dtype in ("float32", "float64")
            if (name, dtype) not in (("painn", "float32"), ("stillinger_weber", "float64"))
        ),
    ],
)
def test_exported_programs_are_the_models(tmp_path, name, dtype):
    """Relative to the largest value; in float32 the order of sums shows in larger models."""
    potential = MODELS[name]()
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), potential.init(jax.random.key(0)))
    path = export_model((potential, params), tmp_path / "model.mosaicmd", dtype=dtype)
    program = load_exported(path)
    reference = jax.jit(lambda *args: evaluate(potential.energy, params, *args, stress=True))
    for n_atoms, padding in ((12, 0), (30, 5)):
        system = random_system(n_atoms, n_atoms=n_atoms, species=LABELS).astype(dtype)
        system = pad_system(system, n_atoms + padding)
        graph = host_graph(system, potential.cutoff)
        graph = pad_graph(graph, graph.n_edges + padding, n_atoms=system.n_atoms)
        wanted, found = reference(system, graph), program.evaluate(system, graph)
        for ours, theirs in (
            (np.sum(found.energies), wanted.energy),
            (found.forces, wanted.forces),
            (found.virial, wanted.stress * volume(system)),
        ):
            scale = max(float(np.abs(theirs).max()), 1e-2)
            np.testing.assert_allclose(ours, theirs, rtol=0.0, atol=TOLERANCES[dtype] * scale)


@pytest.mark.parametrize(
    "name", ["stillinger_weber", pytest.param("painn", marks=pytest.mark.slow)]
)
def test_calculators_follow_a_crystal_that_melts(name):
    """Forces through reused lists equal those of fresh host lists, and sum to zero."""
    potential = MODELS[name]()
    params = potential.init(jax.random.key(1))
    atoms = ase.build.bulk("O", "diamond", a=5.43, cubic=True) * 2
    atoms.numbers[::3] = 1
    atoms.calc = ase_calculator((potential, params), skin=0.6)
    exact = jax.jit(lambda *args: evaluate(potential.energy, params, *args, stress=True))
    rng = np.random.default_rng(0)
    for _ in range(12):
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
        system = from_ase(atoms, dtype="float64")
        graph = pad_graph(host_graph(system, potential.cutoff), 4096, n_atoms=len(atoms))
        wanted = exact(system, graph)
        np.testing.assert_allclose(forces, wanted.forces, atol=1e-11)
        np.testing.assert_allclose(stress, wanted.stress, atol=1e-13)
        np.testing.assert_allclose(forces.sum(axis=0), 0.0, atol=1e-10)
    assert 1 < atoms.calc.n_list_builds < 12
