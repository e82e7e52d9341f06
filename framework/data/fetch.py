"""Data files in a local folder, downloaded there once."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from framework.errors import UserError


@dataclasses.dataclass(frozen=True)
class DataFile:
    """A file of a data set: its path in the data folder, its source and its checksum.

    Args:
        path: path below the data folder, such as ``"fashion-mnist/train-labels-idx1-ubyte.gz"``. The file is also found
            by its bare name, and with ``.gz`` appended.
        url: public source, None if there is none and the user must provide the file.
        sha256: checksum of the file at the source, None to accept any content.
    """

    path: str
    url: str | None = None
    sha256: str | None = None


def data_folder(folder: str | Path | None = None) -> Path:
    """Return the data folder: ``folder``, else ``FRAMEWORK_DATA`` of the environment, else the user's cache."""
    import pooch

    named = folder or os.environ.get("FRAMEWORK_DATA")
    return Path(named).expanduser() if named else Path(pooch.os_cache("jtilde"))


def fetch(files: Sequence[DataFile], folder: str | Path | None = None) -> list[Path]:
    """Return the local path of each file, after downloading those that the data folder lacks.

    Args:
        files: the files needed.
        folder: see :func:`data_folder`.

    Raises:
        UserError: if a file is missing and cannot be downloaded, or its checksum differs; the message names the files
            and the folder.
    """
    root = data_folder(folder)
    places = [_find(file, root) for file in files]
    missing = [file for file, place in zip(files, places, strict=True) if place is None]
    for file in missing:
        _retrieve(file, missing, root)
    return [place or root / file.path for file, place in zip(files, places, strict=True)]


def read_bytes(path: Path) -> bytes:
    """Return the content of a file, decompressed if its name ends in ``.gz``."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _find(file: DataFile, root: Path) -> Path | None:
    name = Path(file.path).name
    for place in (root / file.path, root / f"{file.path}.gz", root / name, root / f"{name}.gz"):
        if place.is_file():
            # the checksum is that of the file at the source: a file compressed since is compared decompressed
            content = place.read_bytes() if place.name == name else read_bytes(place)
            found = hashlib.sha256(content).hexdigest()
            if file.sha256 is not None and found != file.sha256:
                raise UserError(
                    f"{place} has sha256 {found} instead of {file.sha256}: remove it, or replace it by the right file"
                )
            return place
    return None


def _retrieve(file: DataFile, missing: Sequence[DataFile], root: Path) -> None:
    reason = "it has no public source"
    if file.url is not None:
        import pooch

        place = root / file.path
        try:
            pooch.retrieve(
                file.url,
                known_hash=None if file.sha256 is None else f"sha256:{file.sha256}",
                fname=place.name,
                path=place.parent,
            )
            return
        except (OSError, ValueError) as error:  # no connection or no space left; a wrong checksum
            reason = f"{file.url} could not be fetched: {type(error).__name__}"
    names = ", ".join(one.path for one in missing)
    raise UserError(f"no data: put {names} into {root}, or give their folder by --data or FRAMEWORK_DATA ({reason})")
