"""Charges of species: starts come back positive, and what does not fit is named."""

import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel.systems import make_system
from mosaicmd.qeq_longrange.learned_charges import (
    ChargesConfig,
    inverse_softplus,
    positive_parameters,
)


def test_inverse_softplus_undoes_log_1_plus_exp():
    values = jnp.array([1e-3, 0.7, 5.0, 60.0])
    np.testing.assert_allclose(np.log1p(np.exp(inverse_softplus(values))), values, rtol=1e-12)


def test_starts_come_back_by_species_and_whatever_is_learned_stays_positive():
    config = ChargesConfig(electronegativity=2.0, hardness=(4.0, 9.0), widths=(0.5, 1.5))
    params = config.init_charges(2)
    np.testing.assert_array_equal(params["electronegativity"], [2.0, 2.0])
    system = make_system(np.eye(3), [17, 11, 17])
    hardness, widths = positive_parameters(params, (11, 17), system)
    np.testing.assert_allclose(hardness, [9.0, 4.0, 9.0], rtol=1e-12)
    np.testing.assert_allclose(widths, [1.5, 0.5, 1.5], rtol=1e-12)
    far = {name: value - 30.0 for name, value in params.items()}
    assert all(np.all(one > 0.0) for one in positive_parameters(far, (11, 17), system))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hardness": (1.0, 2.0, 3.0)}, "`hardness` has 3 values for the 2 species"),
        ({"widths": (1.0, -1.0)}, "`widths` must be positive"),
        ({"hardness": 0.0}, "`hardness` must be positive"),
    ],
)
def test_values_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ChargesConfig(**settings).check_charges(2)
