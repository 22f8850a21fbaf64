"""The one place where TensorFlow Probability is imported.

TFP 0.25 registers its array type in ``jax.interpreters.xla.pytype_aval_mappings``, a name that jax
removed in 0.7; the table itself lives on. :func:`load_tfp` puts the name back before it imports the
substrate. The whole module can go, in favour of a plain import, once TFP releases a version that
does without: ``test_a_plain_import_still_fails`` then fails and says so.
"""

import importlib
import warnings
from typing import Any

import jax.core
import jax.interpreters.xla

__all__ = ["load_tfp"]


def load_tfp() -> Any:
    """The jax substrate of TensorFlow Probability, as ``tfp`` in ``tfp.distributions``.

    Its samplers broadcast between ranks; where jax is set to refuse that, call them under
    ``jax.numpy_rank_promotion("allow")``.

    Returns:
        The module ``tensorflow_probability.substrates.jax``, fully imported.

    Raises:
        ImportError: if TFP is not installed; it comes with the extra ``tfp`` of the kernel.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "jax.core.pytype_aval_mappings", DeprecationWarning)
        table = jax.core.pytype_aval_mappings
        jax.interpreters.xla.__dict__.setdefault("pytype_aval_mappings", table)
        try:
            tfp = importlib.import_module("tensorflow_probability.substrates.jax")
        except ModuleNotFoundError as error:
            raise ImportError(
                "TensorFlow Probability is not installed; "
                "`pip install 'mosaicmd-kernel[tfp]'` installs the version that works here"
            ) from error
        tfp.distributions  # noqa: B018 - the module is lazy: this loads it
    return tfp
