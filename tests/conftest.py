"""Test settings: 64-bit numbers, and no silent broadcasting between ranks."""

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
