from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from framework.checkpoint.ranks import is_first

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "GROUP_RANK": "0", "LOCAL_RANK": "0"}
SLURM = {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train", "SLURM_NODEID": "0"}


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, True),
        ({**TORCHRUN, "RANK": "0"}, True),
        ({**TORCHRUN, "RANK": "2", "GROUP_RANK": "1"}, False),
        ({"RANK": "3"}, True),  # a variable of somebody else's
        ({**SLURM, "SLURM_PROCID": "0"}, True),
        ({**SLURM, "SLURM_PROCID": "2"}, False),
        ({**SLURM, "SLURM_PROCID": "2", "SLURM_JOB_NAME": "bash"}, True),  # an interactive shell
    ],
)
def test_what_launchers_tell(environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", *SLURM, "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first() is first


SCRIPT = """
import json, os, signal, sys
import torch
from framework import Data, Interrupted, Plugin, Recipe, fit
from plugins.norm_penalty import NormPenalty
from plugins.weight_noise import WeightNoise


class Ends(Plugin):
    at: int = -1

    def after_update(self, step):
        if step.index == self.at and step.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def recipe(at: int = -1):
    torch.manual_seed(0)
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    part = (x, x[:, :1])
    options = {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False, "strategy": "ddp"}
    options |= {"devices": 2, "num_nodes": int(sys.argv[3])}
    plugins = [NormPenalty(1e-3), WeightNoise(0.1), Ends(at=at)]
    data = Data(part, part, batch_size=4)
    return Recipe(torch.nn.Linear(4, 1), data, torch.nn.functional.mse_loss, plugins=plugins, trainer=options)


try:
    run = fit(recipe, logs=sys.argv[1], parameters={"at": int(sys.argv[2])}, resume=sys.argv[4] == "resume")
except Interrupted as end:
    run = end.run
weight = run.core.model.weight.detach().flatten().tolist()
print("RESULT", json.dumps([run.status, run.steps, str(run.folder), weight]), flush=True)
"""


def torchrun(folder: Path, nodes: int, *arguments: str) -> list[Any]:
    """Run the script by torchrun on the loopback interface, two ranks a node, and return each rank's result."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes), "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    started = [
        subprocess.Popen(
            [*command, "--node-rank", str(node), "script.py", *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(nodes)
    ]
    try:
        outputs = [one.communicate(timeout=240)[0] for one in started]
    finally:
        for one in started:
            one.kill()
    lines = [line.partition("RESULT ")[2] for output in outputs for line in output.splitlines() if "RESULT " in line]
    assert len(lines) == 2 * nodes, "\n".join(outputs)
    return [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_ranks_of_torchrun_use_one_folder_and_resume_there(nodes: int, tmp_path: Path) -> None:
    whole = torchrun(tmp_path, nodes, "whole", "-1", str(nodes), "new")
    cut = torchrun(tmp_path, nodes, "cut", "3", str(nodes), "new")
    assert {result[0] for result in cut} == {"interrupted"}
    resumed = torchrun(tmp_path, nodes, "cut", "-1", str(nodes), "resume")
    for results in (whole, resumed):
        assert {result[0] for result in results} == {"finished"}
        assert {result[1] for result in results} == {3 * 64 // (8 * nodes)}
        assert len({result[2] for result in results}) == 1
    assert len({str(result[3]) for result in (*whole, *resumed)}) == 1
    for logs in ("whole", "cut"):
        assert [path.name for path in (tmp_path / logs).glob("*/version_*")] == ["version_0"]


@pytest.mark.slow
def test_the_commands_of_the_documentation(tmp_path: Path) -> None:
    """Two nodes on the loopback interface, by the lines that docs/machines.md gives."""
    root = Path(__file__).parents[3]
    lines = [line for line in (root / "docs/machines.md").read_text().splitlines() if line.startswith("torchrun ")]
    assert len(lines) == 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    started = []
    for line in lines:
        line = line.replace("first-machine", "127.0.0.1").replace("29500", port).replace("recipes/", f"{root}/recipes/")
        command = [sys.executable, "-m", "torch.distributed.run", *line.split()[1:], "--trainer.max_epochs", "2"]
        started.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    try:
        outputs = [one.communicate(timeout=240)[0] for one in started]
    finally:
        for one in started:
            one.kill()
    assert [one.returncode for one in started] == [0, 0], "\n".join(outputs)
    (folder,) = (tmp_path / "lightning_logs/digits").iterdir()
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and (folder / "checkpoints/best.ckpt").exists()
    assert "\n".join(outputs).count("digits: finished") == 1
