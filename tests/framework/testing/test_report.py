"""What the command `check` prints."""

from __future__ import annotations

import pytest

from framework.cli import main as cli
from framework.plugin.registry import registered
from framework.testing import CHECKS
from framework.testing.report import plugin_class, split_target
from plugins.mixup import Mixup


def test_command_prints_each_check_and_fails_where_one_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "weight_noise:std=0.2", "zero", "slope"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "WeightNoise(std=0.2)"
    assert lines[1].split()[:2] == ["zero", "holds"]
    assert lines[2].split()[:3] == ["slope", "no", "claim"]
    assert cli.main(["check", "tests.wrong_plugins:HalfTheSlope", "slope"]) == 1
    assert "FAILS" in capsys.readouterr().out


def test_command_prints_a_table_of_all_plugins_with_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "all", "slope"]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in out.partition("\n\n")[0].splitlines()}
    assert rows["plugin"] == ["slope"]
    assert rows["norm_penalty"] == ["l+"]
    assert rows["sam"] == ["."]
    assert rows.keys() == {"plugin", *(entry.name for entry in registered())}
    assert "slope: the proximal step takes the place of the gradient" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["wieght_noise"], "did you mean 'weight_noise'?"),
        (["weight_noise:sdt=1"], "WeightNoise has no setting 'sdt'; did you mean 'std'?"),
        (["weight_noise:std=1,kind"], "write 'kind' as FIELD=VALUE"),
        (["weight_noise", "micr"], "no such check: 'micr'; did you mean 'micro'?"),
        (["nowhere.at_all:Plugin"], "No module named 'nowhere'"),
        (["framework:Step"], "not a subclass of framework.Plugin"),
    ],
)
def test_mistakes_on_the_command_line_are_told(args: list[str], message: str, capsys) -> None:
    assert cli.main(["check", *args]) == 2
    assert message in capsys.readouterr().err


def test_targets_are_split_target() -> None:
    assert split_target("sam") == ("sam", "")
    assert split_target("a:B:x=[1,2],y='a:b'") == ("a:B", "x=[1,2],y='a:b'")
    assert plugin_class("plugins.mixup:Mixup") is Mixup


def test_help_names_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {check.name} " in out for check in CHECKS)
