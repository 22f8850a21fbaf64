"""Energy functions on graphs, from learnable classical terms to graph neural networks."""

from importlib.metadata import version

from mosaicmd.gnn_models.allegro import (
    AllegroConfig,
    AllegroParts,
    PairState,
    allegro,
    allegro_parts,
)
from mosaicmd.gnn_models.boltzmann_inversion import (
    DihedralPrior,
    HarmonicPrior,
    dihedral_prior,
    harmonic_prior,
)
from mosaicmd.gnn_models.bonded import (
    HarmonicAngleConfig,
    HarmonicBondConfig,
    HarmonicImproperConfig,
    PeriodicDihedralConfig,
    harmonic_angle,
    harmonic_bond,
    harmonic_improper,
    periodic_dihedral,
)
from mosaicmd.gnn_models.dimenet import DimeNetConfig, dimenet
from mosaicmd.gnn_models.embedded_atom import (
    PowerEmbeddingConfig,
    SplineEmbeddingConfig,
    power_embedding,
    spline_embedding,
    sutton_chen,
)
from mosaicmd.gnn_models.fixed import fixed
from mosaicmd.gnn_models.layered import Layered, layered
from mosaicmd.gnn_models.lennard_jones import LennardJonesConfig, lennard_jones, tail_correction
from mosaicmd.gnn_models.listed_repulsion import ListedRepulsionConfig, listed_repulsion
from mosaicmd.gnn_models.mace import MACEConfig, mace
from mosaicmd.gnn_models.morse import MorseConfig, morse
from mosaicmd.gnn_models.nequip import NequIPConfig, nequip
from mosaicmd.gnn_models.painn import PaiNNConfig, painn
from mosaicmd.gnn_models.pair_spline import PairSplineConfig, pair_spline
from mosaicmd.gnn_models.scaled import scaled
from mosaicmd.gnn_models.soft_repulsion import SoftRepulsionConfig, soft_repulsion
from mosaicmd.gnn_models.stillinger_weber import (
    StillingerWeberPairConfig,
    ThreeBodyConfig,
    stillinger_weber,
    stillinger_weber_pair,
    three_body,
)
from mosaicmd.gnn_models.torsion_map import TorsionMapConfig, torsion_map
from mosaicmd.gnn_models.zbl import ZBLConfig, zbl

__version__ = version("mosaicmd-gnn-models")

__all__ = [
    "AllegroConfig",
    "AllegroParts",
    "DihedralPrior",
    "DimeNetConfig",
    "HarmonicAngleConfig",
    "HarmonicBondConfig",
    "HarmonicImproperConfig",
    "HarmonicPrior",
    "Layered",
    "LennardJonesConfig",
    "ListedRepulsionConfig",
    "MACEConfig",
    "MorseConfig",
    "NequIPConfig",
    "PaiNNConfig",
    "PairSplineConfig",
    "PairState",
    "PeriodicDihedralConfig",
    "PowerEmbeddingConfig",
    "SoftRepulsionConfig",
    "SplineEmbeddingConfig",
    "StillingerWeberPairConfig",
    "ThreeBodyConfig",
    "TorsionMapConfig",
    "ZBLConfig",
    "__version__",
    "allegro",
    "allegro_parts",
    "dihedral_prior",
    "dimenet",
    "fixed",
    "harmonic_angle",
    "harmonic_bond",
    "harmonic_improper",
    "harmonic_prior",
    "layered",
    "lennard_jones",
    "listed_repulsion",
    "mace",
    "morse",
    "nequip",
    "painn",
    "pair_spline",
    "periodic_dihedral",
    "power_embedding",
    "scaled",
    "soft_repulsion",
    "spline_embedding",
    "stillinger_weber",
    "stillinger_weber_pair",
    "sutton_chen",
    "tail_correction",
    "three_body",
    "torsion_map",
    "zbl",
]
