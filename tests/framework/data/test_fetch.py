"""Data files: found in the folder, checked, downloaded where absent, and an error where neither works."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from framework.data.fetch import DataFile, data_folder, fetch, read_bytes
from framework.errors import UserError

TEXT = b"To be, or not to be"
SHA = hashlib.sha256(TEXT).hexdigest()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def source(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_folder_by_argument_then_environment_then_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMEWORK_DATA", str(tmp_path / "environment"))
    assert data_folder(tmp_path / "argument") == tmp_path / "argument"
    assert data_folder() == tmp_path / "environment"
    monkeypatch.delenv("FRAMEWORK_DATA")
    assert data_folder().name == "jtilde"


@pytest.mark.parametrize("place", ["text/input.txt", "text/input.txt.gz", "input.txt", "input.txt.gz"])
def test_file_is_found_where_it_lies(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(TEXT) if path.suffix == ".gz" else TEXT)
    assert fetch([DataFile("text/input.txt", sha256=SHA)], tmp_path) == [path]
    assert read_bytes(path) == TEXT


def test_checksum_of_a_file_published_compressed_is_that_of_the_compressed_file(tmp_path: Path) -> None:
    packed = gzip.compress(TEXT)
    (tmp_path / "x.gz").write_bytes(packed)
    assert fetch([DataFile("x.gz", sha256=hashlib.sha256(packed).hexdigest())], tmp_path) == [tmp_path / "x.gz"]
    with pytest.raises(UserError, match=r"x\.gz has sha256"):
        fetch([DataFile("x.gz", sha256=SHA)], tmp_path)


def test_absent_file_is_fetched_once_and_kept(tmp_path: Path) -> None:
    published, folder = tmp_path / "published", tmp_path / "data"
    published.mkdir()
    (published / "input.txt").write_bytes(TEXT)
    with source(published) as url:
        file = DataFile("text/input.txt", f"{url}/input.txt", SHA)
        assert fetch([file], folder) == [folder / "text/input.txt"]
    # the source is gone now: only the kept file can answer
    assert read_bytes(fetch([file], folder)[0]) == TEXT


def test_source_with_another_checksum_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    published, folder = tmp_path / "published", tmp_path / "data"
    published.mkdir()
    (published / "input.txt").write_bytes(b"tampered")
    with source(published) as url, pytest.raises(UserError, match="could not be fetched: ValueError"):
        fetch([DataFile("input.txt", f"{url}/input.txt", SHA)], folder)
    assert not (folder / "input.txt").exists()


def test_offline_and_absent_names_every_missing_file_and_the_folder_in_one_line(tmp_path: Path) -> None:
    with source(tmp_path) as url:
        pass  # a port at which nobody answers any more
    (tmp_path / "there").write_bytes(TEXT)
    files = [DataFile("there"), DataFile("a/one", f"{url}/one"), DataFile("a/two", f"{url}/two")]
    with pytest.raises(UserError) as caught:
        fetch(files, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"no data: put a/one, a/two into {tmp_path}, or give their folder by --data")
    assert "\n" not in message


def test_file_without_a_source_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it has no public source"):
        fetch([DataFile("own.csv")], tmp_path)
