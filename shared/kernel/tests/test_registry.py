"""The registry: every checksum, the order of the places looked in, and errors that help."""

import hashlib
import os
import re
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mosaicmd.kernel import registry
from mosaicmd.kernel.registry import DataSet, DataSetError, datasets, fetch

CONTENT = b"r_A,g\n1,0\n"
NAME = "experimental/made_up.csv"


@pytest.fixture
def entry(monkeypatch, tmp_path):
    """One made-up data set, an empty cache and no data folder; returns what to change."""
    made = {
        "title": "a made-up table",
        "units": "r A, g",
        "source": "nobody/nothing@0000000; Nobody (2000)",
        "licence": "CC0",
        "bytes": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "url": None,
    }
    monkeypatch.setattr(registry, "datasets", lambda: {NAME: DataSet(name=NAME, **made)})
    monkeypatch.setattr(registry, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("MOSAICMD_DATA", raising=False)
    return made


def put(folder, content):
    path = folder / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def server():
    """A web server on this machine that serves CONTENT and counts its requests."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, format, *args):
            """Silent."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/made_up.csv", requests
        server.shutdown()
        thread.join()


def test_every_entry_states_its_facts():
    for name, entry in datasets().items():
        assert not Path(name).is_absolute()
        assert ".." not in Path(name).parts
        assert re.fullmatch("[0-9a-f]{64}", entry.sha256)
        assert entry.bytes > 0
        assert entry.title
        assert entry.units
        assert entry.source
        assert entry.licence
        # A branch moves; only a full commit names bytes for ever.
        assert entry.url is None or re.search("/[0-9a-f]{40}/", entry.url)


@pytest.mark.skipif("MOSAICMD_DATA" not in os.environ, reason="MOSAICMD_DATA is not set")
def test_files_of_the_data_folder_have_their_checksums():
    folder = Path(os.environ["MOSAICMD_DATA"])
    present = [name for name in datasets() if (folder / name).is_file()]
    assert present
    for name in present:
        assert fetch(name) == folder / name
        assert (folder / name).stat().st_size == datasets()[name].bytes


def test_data_folder_comes_before_the_cache(entry, tmp_path, monkeypatch):
    cached = put(tmp_path / "cache", CONTENT)
    assert fetch(NAME) == cached
    own = put(tmp_path / "own", CONTENT)
    monkeypatch.setenv("MOSAICMD_DATA", str(tmp_path / "own"))
    assert fetch(NAME) == own
    own.unlink()
    assert fetch(NAME) == cached


def test_a_wrong_copy_is_never_used(entry, tmp_path, monkeypatch):
    monkeypatch.setenv("MOSAICMD_DATA", str(tmp_path / "own"))
    own = put(tmp_path / "own", CONTENT + b"2,1\n")
    with pytest.raises(DataSetError, match="unset MOSAICMD_DATA") as caught:
        fetch(NAME)
    assert str(own) in str(caught.value)
    assert entry["sha256"] in str(caught.value)
    own.unlink()
    put(tmp_path / "cache", b"")
    with pytest.raises(DataSetError, match="delete it to fetch it again"):
        fetch(NAME)


def test_a_converted_file_says_what_to_put_where(entry, tmp_path):
    with pytest.raises(DataSetError) as caught:
        fetch(NAME)
    message = str(caught.value)
    for fragment in (
        NAME,
        entry["sha256"],
        f"{len(CONTENT)} bytes",
        str(tmp_path / "cache" / NAME),
        "folder named by MOSAICMD_DATA (now not set)",
        entry["source"],
        "licence: CC0",
    ):
        assert fragment in message


def test_a_file_with_an_address_is_fetched_once(entry, server, tmp_path):
    entry["url"], requests = server
    assert fetch(NAME) == tmp_path / "cache" / NAME
    assert fetch(NAME).read_bytes() == CONTENT
    assert requests == ["/made_up.csv"]


def test_a_download_with_the_wrong_checksum_is_refused(entry, server, tmp_path):
    entry["url"], _ = server
    entry["sha256"] = "0" * 64
    with pytest.raises(DataSetError, match="cannot be fetched"):
        fetch(NAME)
    assert not (tmp_path / "cache" / NAME).exists()


def test_without_a_network_the_error_says_what_to_put_where(entry, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        entry["url"] = f"http://127.0.0.1:{unused.getsockname()[1]}/made_up.csv"
        with pytest.raises(DataSetError) as caught:
            fetch(NAME)
    message = str(caught.value)
    for fragment in (entry["url"], entry["sha256"], str(tmp_path / "cache" / NAME)):
        assert fragment in message


def test_without_pooch_the_error_says_how_to_get_it(entry, monkeypatch):
    entry["url"] = "http://127.0.0.1:9/made_up.csv"
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataSetError, match=r"pip install 'mosaicmd-kernel\[data\]'"):
        fetch(NAME)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(DataSetError, match=r"did you mean `experimental/water_OO_RDF\.csv`"):
        fetch("experimental/water_OO_RDF")
