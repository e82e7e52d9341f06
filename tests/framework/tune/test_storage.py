"""Journal files survive killed writers; servers are shared by machines, here PostgreSQL and Optuna's proxy."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from framework import UserError
from framework.tune import tune
from framework.tune.storage import JournalLock, hidden, open_storage, open_study


def test_an_unfinished_line_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    study = open_study(str(path), "x", "minimize")
    study.ask()
    before = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"op_code": 4, "wor')  # killed while it wrote
    again = open_study(str(path), "x", "minimize")
    again.ask()
    assert path.read_bytes().startswith(before)
    assert len(open_study(str(path), "x", "minimize", create=False).trials) == 2


def test_the_lock_is_exclusive_and_leaves_a_file_of_whole_lines_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    path.write_bytes(b"{}\n")
    lock = JournalLock(path)
    assert lock.acquire()
    lock.release()
    lock.release()
    assert path.read_bytes() == b"{}\n"


def test_addresses() -> None:
    assert hidden("sqlite:///study.db") == "sqlite:///study.db"
    assert hidden("postgresql://me@host:5432/db") == "postgresql://me@host:5432/db"
    assert "secret" not in hidden("postgresql://me:secret@host:5432/db")


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("sqlite:////nowhere/at/all/study.db", r"storage='sqlite:////nowhere/at/all/study.db': cannot be "),
        ("nosuch://host/db", r"storage='nosuch://host/db': cannot be opened"),
    ],
)
def test_storages_that_are_away(where: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        open_storage(where)
    assert "\n" not in str(caught.value)


def test_a_study_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no study 'x'"):
        open_study(str(tmp_path / "journal.log"), "x", "minimize", create=False)


# ---- servers ---------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _command(*words: str) -> list[str]:
    """Return a command of PostgreSQL's, which does not run as root."""
    return ["runuser", "-u", "postgres", "--", *words] if os.getuid() == 0 else list(words)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start PostgreSQL in a folder of its own and return its address."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    bin_ = found[-1] if found else None
    if bin_ is None or shutil.which("runuser") is None:
        pytest.skip("PostgreSQL is not installed")
    folder = tmp_path_factory.mktemp("postgres")
    if os.getuid() == 0:
        for one in (folder, *folder.parents):  # a worker's temporary folder lies deeper
            if not one.stat().st_mode & 0o001:
                one.chmod(0o755)
        shutil.chown(folder, "postgres")
    data, port = folder / "data", free_port()
    quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "cwd": "/"}
    subprocess.run(_command(str(bin_ / "initdb"), "-D", str(data), "-A", "trust", "-U", "me"), **quiet)
    options = f"-p {port} -k {folder} -h 127.0.0.1 -F"
    control = [str(bin_ / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log")]
    subprocess.run(_command(*control, "-o", options, "start"), **quiet)
    try:
        yield f"postgresql+psycopg://me@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(_command(*control, "-m", "fast", "stop"), **{**quiet, "check": False})


@pytest.mark.slow
def test_two_machines_work_on_one_study(postgres: str, toy: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    # two folders: as on two machines without a common file system
    machines = [
        context.Process(target=tune, args=(toy,), kwargs=_order(postgres, tmp_path / name)) for name in ("a", "b")
    ]
    for one in machines:
        one.start()
    for one in machines:
        one.join()
    assert [one.exitcode for one in machines] == [0, 0]
    study = open_study(postgres, "study", "minimize", create=False)
    alone = tune(toy, trials=12, sampler="random", logs=tmp_path / "alone")
    assert {one.number: one.value for one in study.trials} == {one.number: one.value for one in alone.trials}
    folders = [
        {path.name for path in (tmp_path / name).glob("searched_recipe/studies/study/trials/*")} for name in ("a", "b")
    ]
    assert not folders[0] & folders[1]
    assert len(folders[0] | folders[1]) == 12


@pytest.mark.slow
def test_a_server_that_is_gone_is_told(postgres: str) -> None:
    away = postgres.replace(postgres.rpartition(":")[2], f"{free_port()}/postgres")
    with pytest.raises(UserError, match=r"storage='postgresql\+psycopg://me@127.0.0.1:\d+/postgres': cannot be opened"):
        open_storage(away)


@pytest.mark.slow
def test_through_the_proxy(toy: Path, tmp_path: Path) -> None:
    pytest.importorskip("grpc", reason="grpcio is not installed")
    context, port = multiprocessing.get_context("spawn"), free_port()
    server = context.Process(target=_serve, args=(str(tmp_path / "journal.log"), port), daemon=True)
    server.start()
    try:
        for _ in range(300):
            with closing(socket.socket()) as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        study = tune(toy, **_order(f"grpc://127.0.0.1:{port}", tmp_path / "logs"))
        assert len(study.ranking()) == 12
    finally:
        server.terminate()
        server.join()


def _order(storage: str, logs: Path) -> dict[str, Any]:
    return {"trials": 12, "sampler": "random", "storage": storage, "logs": logs}


def _serve(path: str, port: int) -> None:
    from optuna.storages import run_grpc_proxy_server

    run_grpc_proxy_server(open_storage(path), host="127.0.0.1", port=port)
