"""Bayesian uncertainty of learned potentials, propagated to the observables of MD."""

from importlib.metadata import version

__version__ = version("mosaicmd-bayes-uq")

__all__ = ["__version__"]
