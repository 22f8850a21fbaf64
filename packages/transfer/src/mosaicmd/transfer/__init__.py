"""Moving a trained potential to another element."""

from importlib.metadata import version

from mosaicmd.transfer.learning_curves import (
    Curve,
    Ratios,
    Trial,
    chosen_rates,
    learning_curve,
    nested_subsets,
    plan_trials,
    relative_errors,
)
from mosaicmd.transfer.rescaled import rescaled
from mosaicmd.transfer.scales import (
    Scales,
    ScalesFit,
    covalent_length_ratio,
    fit_scales,
    lattice_length_ratio,
)
from mosaicmd.transfer.stability import Lasting, Sanity, lasting
from mosaicmd.transfer.strategies import (
    Learnable,
    Strategy,
    copy_except,
    learnable,
    optimizer_of,
    pull_towards,
    start,
)
from mosaicmd.transfer.survival import (
    Means,
    Survival,
    compared_means,
    restricted_mean,
    survival_curve,
)

__version__ = version("mosaicmd-transfer")

__all__ = [
    "Curve",
    "Lasting",
    "Learnable",
    "Means",
    "Ratios",
    "Sanity",
    "Scales",
    "ScalesFit",
    "Strategy",
    "Survival",
    "Trial",
    "__version__",
    "chosen_rates",
    "compared_means",
    "copy_except",
    "covalent_length_ratio",
    "fit_scales",
    "lasting",
    "lattice_length_ratio",
    "learnable",
    "learning_curve",
    "nested_subsets",
    "optimizer_of",
    "plan_trials",
    "pull_towards",
    "relative_errors",
    "rescaled",
    "restricted_mean",
    "start",
    "survival_curve",
]
