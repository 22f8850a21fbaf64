"""Tables of measured values: units from the column names, and faults named by row."""

import os
from pathlib import Path

import numpy as np
import pytest

from mosaicmd.kernel.tables import Table, TableError, read_table

RDF = "# g(r) of water\n# Somebody (2000)\n\nr_nm,g_OO\n0.1, 0\n0.28,2.5\n"


def test_text_gives_columns_and_source():
    table = read_table(RDF)
    np.testing.assert_array_equal(table["r_nm"], [0.1, 0.28])
    np.testing.assert_array_equal(table["g_OO"], [0.0, 2.5])
    assert table.source == "g(r) of water Somebody (2000)"


def test_quantity_is_in_internal_units_whatever_the_file_has():
    in_nm = read_table("r_nm,g\n0.1,0\n0.25,1\n")
    in_angstrom = read_table("r_A,g\n1,0\n2.5,1\n")
    np.testing.assert_allclose(in_nm.quantity("r", "length"), [1.0, 2.5], rtol=1e-15)
    np.testing.assert_allclose(in_angstrom.quantity("r", "length"), [1.0, 2.5], rtol=1e-15)
    kelvin = read_table("T_K,C11_GPa\n4,176.1\n300,162.4\n")
    np.testing.assert_allclose(kelvin.quantity("T", "temperature")[1], 0.0258520, rtol=1e-5)
    np.testing.assert_allclose(kelvin.quantity("C11", "pressure")[0], 176.1 / 160.21766, rtol=1e-6)


def test_files_in_csv_and_json_agree(tmp_path):
    (tmp_path / "a.csv").write_text("# x\nr_A,name\n1.5,O-O\n2.5,O-H\n")
    (tmp_path / "a.json").write_text(
        '{"source": "x", "columns": {"r_A": [1.5, 2.5], "name": ["O-O", "O-H"]}}'
    )
    tables = [read_table(tmp_path / name, text=["name"]) for name in ("a.csv", "a.json")]
    for table in tables:
        np.testing.assert_array_equal(table["r_A"], [1.5, 2.5])
        assert table["name"].tolist() == ["O-O", "O-H"]
        assert table.source == "x"


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("# c\nr_A,g\n1,2\n2,nan\n", "line 4: column `g` is nan"),
        ("r_A,g\n1,2\n\n2,inf\n", "line 4: column `g` is inf"),
        ("r_A,g\n1,\n", "line 2: column `g` is empty"),
        ("r_A,g\n1,0.0x1\n", "line 2: column `g` is '0.0x1', which is no number"),
        ("r_A,g\n1,2,3\n", "line 2: 3 values for 2 columns"),
        ("r_A,r_A\n1,2\n", "two columns of one name"),
        ("r_A,g\n", "no rows"),
        ("\n", "no rows"),
    ],
)
def test_fault_names_line_and_column(text, fragment):
    with pytest.raises(TableError) as caught:
        read_table(text)
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ('{"columns": {"g": [1, null]}}', "row 2: column `g` is None"),
        ('{"columns": {"g": [1, NaN]}}', "row 2: column `g` is nan"),
        ('{"columns": {"g": [1], "r": [1, 2]}}', "one length"),
        ('{"columns": {}}', "one length"),
        ('{"columns": [1]}', "must be"),
        ("[1]", "must be"),
        ("{", "no valid JSON"),
    ],
)
def test_fault_in_json_names_row_and_column(tmp_path, text, fragment):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(TableError) as caught:
        read_table(tmp_path / "a.json")
    assert fragment in str(caught.value)
    assert str(tmp_path / "a.json") in str(caught.value)


def test_unknown_columns_are_answered_with_the_known_ones(tmp_path):
    table = read_table(RDF)
    with pytest.raises(TableError, match="did you mean `g_OO`"):
        table["g_O"]
    with pytest.raises(TableError, match="no column `r_UNIT` with a unit of time; there are r_nm"):
        table.quantity("r", "time")
    with pytest.raises(TableError, match=r"no column \['smiles'\]"):
        read_table(RDF, text=["smiles"])
    with pytest.raises(TableError, match="cannot be read"):
        read_table(tmp_path / "none.csv")


@pytest.mark.skipif("MOSAICMD_DATA" not in os.environ, reason="MOSAICMD_DATA is not set")
class TestReferenceData:
    """The tables of the reference data, with figures read off the files."""

    folder = Path(os.environ.get("MOSAICMD_DATA", ""))

    def test_water_rdf_peaks_at_the_first_shell(self):
        """First maximum of g_OO of water: 2.8 Å, 2.5 to 2.8 high."""
        for name, column in (
            ("water_OO_RDF.csv", "g_OO"),
            ("water_OO_RDF_Skinner2014_295K.csv", "g"),
        ):
            table = read_table(self.folder / "experimental" / name)
            r, g = table.quantity("r", "length"), table[column]
            assert 2.7 < r[np.argmax(g)] < 2.9
            assert 2.4 < g.max() < 2.9

    def test_titanium_table_has_22_temperatures_and_a_source(self):
        table = read_table(self.folder / "experimental" / "titanium_vs_temperature.csv")
        assert isinstance(table, Table)
        assert len(table["T_K"]) == 22
        np.testing.assert_allclose(table.quantity("a", "length")[0], 2.94398)
        assert "Ti hcp" in table.source

    def test_table_with_text_columns(self):
        text = [
            "id", "smiles", "iupac", "expt_reference", "calc_reference", "elements", "resolv_split",
        ]  # fmt: skip
        table = read_table(self.folder / "freesolv_dev.csv", text=text)
        assert len(table["id"]) == 516
        np.testing.assert_allclose(
            table.quantity("expt", "energy")[0], -2.49 * 0.0433641, rtol=1e-5
        )
