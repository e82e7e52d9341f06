"""Files are data: whatever a checkpoint or a run's folder holds, reading it runs nothing."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import framework
from framework.checkpoint.file import read_checkpoint
from framework.cli import main as cli
from framework.engine.state import BadCheckpoint
from framework.errors import UserError
from framework.run.trainer import refusals

RECIPE = """
import torch
from torch import nn
from framework import Data, Recipe

def recipe() -> Recipe:
    part = torch.randn(24, 3), torch.randn(24, 1)
    return Recipe(
        nn.Linear(3, 1), Data(part, part, part, batch_size=4), nn.functional.mse_loss,
        trainer={"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
    )
"""


class Hostile:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


# ---- files -----------------------------------------------------------------------------------------------------------


def zipped(content: Any, good: Path, path: Path) -> None:
    """As ``torch.save`` writes it."""
    torch.save(content, path)


def legacy(content: Any, good: Path, path: Path) -> None:
    """As old versions of torch wrote it."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


def plain(content: Any, good: Path, path: Path) -> None:
    """Pickled without torch."""
    path.write_bytes(pickle.dumps(content))


def headed(content: Any, good: Path, path: Path) -> None:
    """Pickled without torch, under the first bytes of a zip archive."""
    path.write_bytes(b"PK\x03\x04" + pickle.dumps(content))


def before_an_archive(content: Any, good: Path, path: Path) -> None:
    """Pickled without torch, before a good checkpoint: a zip archive is read from its end, a pickle from its start."""
    path.write_bytes(pickle.dumps(content) + good.read_bytes())


def swapped(content: Any, good: Path, path: Path) -> None:
    """A good checkpoint whose own pickle is another, checksums included."""
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            new.writestr(name, pickle.dumps(content) if name.endswith("data.pkl") else old.read(name))


def twice(content: Any, good: Path, path: Path) -> None:
    """A good checkpoint with a second pickle of the same name."""
    shutil.copy(good, path)
    with zipfile.ZipFile(path, "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(name, pickle.dumps(content))


def script(content: Any, good: Path, path: Path) -> None:
    """A program of TorchScript's, which torch recognizes by a name in the archive, with a pickle beside it."""
    swapped(content, good, path)
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/constants.pkl", pickle.dumps(content))
        archive.writestr(f"{root}/code/__torch__.py", "import os")


FORGERIES = [zipped, legacy, plain, headed, before_an_archive, swapped, script]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a recipe and a run of it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "plain_recipe.py").write_text(RECIPE)
    assert cli.main(["fit", str(folder / "plain_recipe.py"), "--logs", str(folder / "logs")]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return the folder of a run of one's own, with the recipe and all runs above it."""
    shutil.copytree(trained, tmp_path / "own")
    return tmp_path / "own" / "logs" / "plain_recipe" / "version_0"


@pytest.fixture
def hostile(run: Path, tmp_path: Path) -> Callable[[Callable[..., None], Path], Path]:
    """Return a function that puts a hostile file at a path and returns the mark that it would leave."""

    def make(forge: Callable[..., None], path: Path) -> Path:
        mark, good = tmp_path / "mark", tmp_path / "good.ckpt"
        shutil.copy(run / "checkpoints" / "last.ckpt", good)
        path.unlink(missing_ok=True)
        content = torch.load(good, weights_only=True)
        forge({**content, "state_dict": {**content["state_dict"], "more": Hostile(mark)}}, good, path)
        return mark

    return make


def refused(run: Path, capsys: pytest.CaptureFixture[str], command: str, *flags: str) -> str:
    """Return the one line by which a command is refused."""
    recipe, logs = run.parents[2] / "plain_recipe.py", run.parents[1]
    capsys.readouterr()
    assert cli.main([command, str(recipe), "--logs", str(logs), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


@pytest.mark.parametrize("forge", [zipped, legacy, plain, swapped])
def test_these_files_do_leave_a_mark_where_they_are_trusted(hostile: Any, tmp_path: Path, forge: Any) -> None:
    mark = hostile(forge, tmp_path / "file.ckpt")
    if forge is plain:
        pickle.loads((tmp_path / "file.ckpt").read_bytes())
    else:
        torch.load(tmp_path / "file.ckpt", weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("forge", FORGERIES)
def test_reading_runs_nothing(hostile: Any, tmp_path: Path, forge: Any) -> None:
    path = tmp_path / "file.ckpt"
    mark = hostile(forge, path)
    with pytest.raises(BadCheckpoint) as raised:
        read_checkpoint(path)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)
    assert not mark.exists()


def test_of_two_pickles_none_is_run(hostile: Any, tmp_path: Path) -> None:
    """Which of them torch reads is up to torch: the good one, or that one that is refused."""
    path = tmp_path / "file.ckpt"
    mark = hostile(twice, path)
    with contextlib.suppress(BadCheckpoint):
        assert "more" not in read_checkpoint(path)["state_dict"]
    assert not mark.exists()


@pytest.mark.parametrize("forge", FORGERIES)
def test_no_command_runs_a_file_that_is_named(
    run: Path, hostile: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], forge: Any
) -> None:
    path, out = tmp_path / "file.ckpt", tmp_path / "net.safetensors"
    mark = hostile(forge, path)
    for command, *flags in (
        ("validate", "--ckpt"),
        ("test", "--ckpt"),
        ("predict", "--ckpt"),
        ("export", "--out", str(out), "--ckpt"),
        ("fit", "--weights"),
    ):
        assert str(path) in refused(run, capsys, command, *flags, str(path)), command
        assert not mark.exists(), command
    assert not out.exists()


@pytest.mark.parametrize("forge", FORGERIES)
def test_no_command_runs_what_lies_in_a_runs_folder(
    run: Path, hostile: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], forge: Any
) -> None:
    mark = hostile(forge, run / "checkpoints" / "best.ckpt")
    for command, *flags in (("validate",), ("test",), ("predict",), ("export", "--out", str(tmp_path / "net.pt2"))):
        assert "best.ckpt" in refused(run, capsys, command, *flags), command
        assert not mark.exists(), command


@pytest.mark.parametrize("forge", FORGERIES)
def test_resuming_runs_nothing_and_continues_from_the_file_before(
    run: Path, hostile: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, forge: Any
) -> None:
    """The run was cut off in its last epoch; its last file is hostile, then all of them are."""
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))
    command = ["fit", str(run.parents[2] / "plain_recipe.py"), "--logs", str(run.parents[1]), "--resume"]
    files = run / "checkpoints"
    kept = {name: (files / f"{name}.ckpt").read_bytes() for name in ("best", "last", "previous")}
    mark = hostile(forge, files / "last.ckpt")
    bad = (files / "last.ckpt").read_bytes()
    for name in ("best", "previous"):
        (files / f"{name}.ckpt").write_bytes(bad)
    assert "no usable checkpoint to resume from" in refused(run, capsys, "fit", "--resume")
    assert not mark.exists()
    (files / "previous.ckpt").write_bytes(kept["previous"])
    with caplog.at_level(logging.INFO, "pytorch_lightning"):
        assert cli.main(command) == 0
    assert "last.ckpt: " in caplog.text
    assert not mark.exists()
    again = read_checkpoint(files / "last.ckpt")
    with (run.parent / "kept.ckpt").open("wb") as file:
        file.write(kept["last"])
    last = read_checkpoint(run.parent / "kept.ckpt")
    assert all(torch.equal(again["state_dict"][name], value) for name, value in last["state_dict"].items())


def test_other_files_of_a_runs_folder_are_not_run_either(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "mark"
    wrong = pickle.dumps(Hostile(mark))
    (run / "recipe.py").write_text(f"open({str(mark)!r}, 'w')")
    for file in run.glob("events*"):
        file.write_bytes(wrong)
    (run / "checkpoints" / "next.ckpt").write_bytes(wrong)
    recipe, logs = run.parents[2] / "plain_recipe.py", run.parents[1]
    assert cli.main(["test", str(recipe), "--logs", str(logs)]) == 0
    (run / "run.json").write_bytes(wrong)
    assert "run.json" in refused(run, capsys, "test")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (dict(nn.Linear(3, 1).state_dict()), "not a checkpoint of this framework"),
        ([1, 2], "holds a list"),
        ({"framework": {"format": 1}}, "an incomplete checkpoint, without"),
        ({"framework": {"format": 1, "history": []}, "state_dict": {}}, "an incomplete checkpoint, without"),
        ({"framework": {"format": 99}, "state_dict": {}}, "has format 99, but this version reads format"),
    ],
)
def test_data_that_are_no_checkpoint_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, words: str
) -> None:
    path = tmp_path / "file.ckpt"
    torch.save(content, path)
    for command, *flags in (("test", "--ckpt"), ("export", "--out", str(tmp_path / "x.pt2"), "--ckpt")):
        assert words in refused(run, capsys, command, *flags, str(path))


def test_what_the_checkpoints_hold_is_data(run: Path) -> None:
    """No class at all is named in a checkpoint's pickle but torch's own for tensors."""
    import pickletools

    with zipfile.ZipFile(run / "checkpoints" / "last.ckpt") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        named = {arg for code, arg, _ in pickletools.genops(io.BytesIO(archive.read(name))) if code.name == "GLOBAL"}
    assert named <= {
        "torch._utils _rebuild_tensor_v2",
        "torch FloatStorage",
        "torch DoubleStorage",
        "torch LongStorage",
        "collections OrderedDict",
    }, named


def test_strategies_that_read_files_their_own_way_refuse_them_in_one_line_too(hostile: Any, tmp_path: Path) -> None:
    mark = hostile(zipped, tmp_path / "file.ckpt")
    words = r"^the checkpoint: holds more than tensors and plain data \(\w+\.mkdir\) and was not unpickled"
    with pytest.raises(UserError, match=words), refusals():
        torch.load(tmp_path / "file.ckpt", weights_only=True)
    assert not mark.exists()


def test_from_python(run: Path, hostile: Any, tmp_path: Path) -> None:
    mark = hostile(zipped, tmp_path / "file.ckpt")
    recipe = run.parents[2] / "plain_recipe.py"
    for ask in (framework.test, framework.validate, framework.predict):
        with pytest.raises(UserError, match=r"file.ckpt: holds more than tensors and plain data \(\w+\.mkdir\)"):
            ask(recipe, run=run, ckpt=tmp_path / "file.ckpt")
    with pytest.raises(UserError, match=r"file.ckpt: holds more"):
        framework.export(recipe, tmp_path / "net.pt2", run=run, ckpt=tmp_path / "file.ckpt")
    assert not mark.exists()
