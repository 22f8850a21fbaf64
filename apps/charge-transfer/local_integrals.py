"""Integrals of PBE and the like for clusters in less time: orbitals only where they are.

PySCF's own take all orbitals at all points of the grid, in every cycle. Here those that matter are
found once for each batch of neighboring points, with their values there; and the forces of the
fitted density take derivatives of orbitals only, as those of its own functions follow from them.
"""

from typing import Any

import numpy as np
import scipy.linalg
from pyscf import dft, lib  # pyright: ignore[reportMissingImports]
from pyscf.df.grad import rks as fitted  # pyright: ignore[reportMissingImports]
from pyscf.gto import moleintor  # pyright: ignore[reportMissingImports]
from pyscf.gto.eval_gto import BLKSIZE  # pyright: ignore[reportMissingImports]

BATCH = 10 * BLKSIZE
NEGLIGIBLE = 1e-8  # value of an orbital, bohr^-3/2
SECOND = np.array([[4, 5, 6], [5, 7, 8], [6, 8, 9]])  # where PySCF has second derivatives


def batches(mol, grid, derivatives):
    """Points that lie together: orbitals there, their values ``[k, orbitals, points]``, weights."""
    functions, name = mol.ao_loc_nr(), f"GTOval_sph_deriv{derivatives}"
    for start in range(0, len(grid.coords), BATCH):
        points = grid.coords[start : start + BATCH]
        largest = np.abs(mol.eval_gto("GTOval_sph", points)).max(axis=0)
        shells = np.maximum.reduceat(largest, functions[:-1]) > NEGLIGIBLE
        kept = np.flatnonzero(np.repeat(shells, np.diff(functions)))
        runs = np.flatnonzero(np.diff(np.concatenate([[False], shells, [False]]))).reshape(-1, 2)
        values = [
            mol.eval_gto(name, points, shls_slice=(int(a), int(b))).transpose(0, 2, 1)
            for a, b in runs
        ]
        if values:
            yield kept, np.concatenate(values, axis=1), grid.weights[start : start + BATCH]


def density(values, matrix):
    """Density and its gradient, ``[4, points]``."""
    turned = matrix @ values[0]
    rho = np.stack([np.einsum("in,in->n", one, turned) for one in values[:4]])
    rho[1:] *= 2.0
    return rho


def weighted(values, weights):
    """Sum of ``[k, orbitals, points]`` with weights ``[k, points]``."""
    total = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total += value * weight
    return total


class LocalIntegration(dft.numint.NumInt):
    """For a gradient-corrected functional and one closed-shell density; keeps what it evaluated."""

    known: tuple[Any, list] | None = None

    def nr_rks(self, mol, grids, xc_code, dms, **_: Any):
        if self.known is None or self.known[0] is not grids.coords:
            self.known = None  # first of all, for want of room for two
            self.known = grids.coords, list(batches(mol, grids, 1))
        electrons, energy, potential = 0.0, 0.0, np.zeros(dms.shape)
        for kept, values, weights in self.known[1]:
            own = np.ix_(kept, kept)
            rho = density(values, dms[own])
            energies, slopes = self.eval_xc_eff(xc_code, rho, deriv=1, xctype="GGA")[:2]
            electrons += weights @ rho[0]
            energy += (weights * rho[0]) @ energies
            slopes = weights * slopes
            slopes[0] *= 0.5
            potential[own] += values[0] @ weighted(values, slopes).T
        return electrons, energy, potential + potential.T


class LocalGradients(fitted.Gradients):
    """Of a calculation whose `_numint` is a :class:`LocalIntegration`."""

    def get_veff(self, mol=None, dm=None):
        mol = self.mol if mol is None else mol
        matrix = np.asarray(self.base.make_rdm1() if dm is None else dm)
        coulomb, auxiliary = coulomb_derivative(mol, self.base.with_df, matrix)
        found = coulomb - functional_derivative(mol, self.base, matrix)
        return lib.tag_array(found, aux=auxiliary)


def functional_derivative(mol, field, matrix):
    """Of the functional's potential, in the bra, ``[3, n, n]``."""
    found = np.zeros((3, *matrix.shape))
    for kept, values, weights in batches(mol, field.grids, 2):
        own = np.ix_(kept, kept)
        rho = density(values, matrix[own])
        slopes = weights * field._numint.eval_xc_eff(field.xc, rho, deriv=1, xctype="GGA")[1]
        slopes[0] *= 0.5
        ket = weighted(values[:4], slopes)
        for axis in range(3):
            bra = weighted(values[[1 + axis, *SECOND[axis]]], slopes)
            found[axis][own] += values[1 + axis] @ ket.T + bra @ values[0].T
    return found


def coulomb_derivative(mol, fit, matrix):
    """Of the Coulomb matrix in the bra, ``[3, n, n]``; of the energy by the fit, ``[atoms, 3]``.

    Integrals of three functions do not change if all of them move, so the derivative in the third
    is what those in the first two leave.
    """
    auxiliary, n, start = fit.auxmol, mol.nao, mol.nbas
    both, name = mol + auxiliary, "int3c2e_ip1_sph"
    packed = lib.pack_tril(2.0 * matrix - np.diag(np.diag(matrix)))
    half = np.concatenate([block @ packed for block in fit.loop()])
    lower = scipy.linalg.cholesky(auxiliary.intor("int2c2e"), lower=True)
    charges = scipy.linalg.solve_triangular(lower, half, lower=True, trans=1)
    options = moleintor.make_cintopt(mol._atm, mol._bas, mol._env, name)
    functions = auxiliary.ao_loc_nr()
    found, moved = np.zeros((3, n * n)), np.zeros((3, auxiliary.nao))
    for a in range(0, auxiliary.nbas, 12):
        b = min(a + 12, auxiliary.nbas)
        here, shells = slice(functions[a], functions[b]), (0, start, 0, start, start + a, start + b)
        three = moleintor.getints(
            name, both._atm, both._bas, both._env, shells, aosym="s1", cintopt=options
        )
        for axis in range(3):
            flat = three[axis].T.reshape(-1, n * n)
            found[axis] += charges[here] @ flat
            moved[axis, here] = flat @ (-2.0 * matrix.reshape(-1))
    pull = charges * (moved - auxiliary.intor("int2c2e_ip1") @ charges)
    slices = auxiliary.aoslice_by_atom()[:, 2:]
    response = -np.stack([pull[:, a:b].sum(axis=1) for a, b in slices])
    return -found.reshape(3, n, n).transpose(0, 2, 1), response
