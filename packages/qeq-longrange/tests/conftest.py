"""Test settings: 64-bit numbers, no silent broadcasting between ranks, helpers importable."""

import sys
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
sys.path.insert(0, str(Path(__file__).parent))
