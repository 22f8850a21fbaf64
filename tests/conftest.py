"""Test settings: 64-bit numbers, no silent broadcasting between ranks, helpers importable."""

import sys
from pathlib import Path

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drop compiled programs after each module: a process may map only so many pieces of memory."""
    yield
    jax.clear_caches()
