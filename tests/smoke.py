"""Use the installed members, named as arguments, far from the tree: import each, compute an energy.

Run by `nox -s wheels` in an environment that holds the wheels and what they declare, no more.
"""

import importlib
import sys
from importlib.metadata import version
from pathlib import Path

import ase.build
import jax

from mosaicmd.gnn_models import stillinger_weber
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.potentials import evaluate
from mosaicmd.kernel.systems import from_ase

for member in sys.argv[1:]:
    module = importlib.import_module("mosaicmd." + member.replace("-", "_"))
    folder = Path(str(module.__file__)).parent
    assert folder.is_relative_to(sys.prefix), f"{folder} is not installed in {sys.prefix}"
    assert (folder / "py.typed").is_file(), f"{member} ships no py.typed"
    assert module.__version__ == version(f"mosaicmd-{member}")
    print(f"mosaicmd-{member} {module.__version__}")

silicon = from_ase(ase.build.bulk("Si", a=5.43095))
potential = stillinger_weber(epsilon=2.1683, sigma=2.0951)
graph = host_graph(silicon, potential.cutoff)
energy = float(evaluate(potential.energy, potential.init(jax.random.key(0)), silicon, graph).energy)
assert abs(energy / 2 + 2 * 2.1683) < 1e-4, energy  # Stillinger & Weber (1985): -2 epsilon
print(f"silicon: {energy / 2:.4f} eV per atom")
