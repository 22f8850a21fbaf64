"""Errors that were published for the benchmarks that these sets follow."""

from typing import NamedTuple


class Published(NamedTuple):
    """Root mean square errors on test structures."""

    model: str
    energy: float  # meV/atom
    forces: float  # meV/Å
    charges: float | None  # me


KO = "Ko et al., Nat. Commun. 12, 398 (2021)"
UNKE = "SpookyNet: Unke et al., Nat. Commun. 12, 7273 (2021)"
DATA = {
    "C10H2/C10H3+": "10019 structures, PBE (FHI-aims)",
    "Na8/9Cl8+": "5000 structures, PBE (FHI-aims); without the ninth atom an open shell",
    "Ag3+/-": "11013 structures, PBE (FHI-aims)",
    "Au2-MgO": "5000 structures, PBE (FHI-aims)",
}
ERRORS = {  # charges are equilibrated in the first; the last, of the same authors, is local
    "C10H2/C10H3+": (
        Published("4G-HDNNP", 1.194, 78.00, 6.577),
        Published("SpookyNet", 0.364, 5.802, 0.117),
        Published("2G-HDNNP", 1.619, 129.5, None),
    ),
    "Na8/9Cl8+": (
        Published("4G-HDNNP", 0.481, 32.78, 15.83),
        Published("SpookyNet", 0.135, 1.052, 0.111),
        Published("2G-HDNNP", 1.692, 57.39, None),
    ),
    "Ag3+/-": (
        Published("4G-HDNNP", 1.323, 31.69, 9.976),
        Published("SpookyNet", 0.220, 26.64, 0.459),
        Published("2G-HDNNP", 352.0, 1803.0, None),
    ),
    "Au2-MgO": (
        Published("4G-HDNNP", 0.219, 66.0, 5.698),
        Published("SpookyNet", 0.107, 5.337, 1.013),
        Published("2G-HDNNP", 2.287, 153.1, None),
    ),
}
