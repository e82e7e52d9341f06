"""The kit: each wrong plugin is caught by the check that is meant to, and bundled plugins hold what they claim."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from framework import Core, Plugin, Step, UserError
from framework.cli import main as cli
from framework.plugin.registry import registered
from framework.testing import CHECKS, TASKS, Case, Check, Status, cases_of, check_named, check_plugin
from framework.testing.case import isolated
from framework.testing.compare import difference, same_bits
from framework.testing.report import plugin_class, split_target
from plugins.input_noise import InputNoise
from plugins.mixup import Mixup
from plugins.norm_penalty import NormPenalty
from plugins.weight_noise import WeightNoise
from tests.wrong_plugins import CAUGHT, ForgetsItsCount, SeedsByRank

# the check compiles a network, which takes seconds
FAST = [check for check in CHECKS if check.name != "compile"]
BUNDLED = {
    f"{entry.name}{number}": case for entry in registered() for number, case in enumerate(cases_of(entry.load()), 1)
}


class Harmless(Plugin):
    """Shrinks gradients, or refuses to."""

    factor: float = 0.5
    promise: str = ""
    refuse: bool = False

    absent = ({"factor": 1.0},)

    def limits(self) -> dict[str, str]:
        return {self.promise: "so it is said"} if self.promise else {}

    def attach(self, core: Core) -> None:
        if self.refuse:
            raise UserError("Harmless(refuse=True): refused; leave it out")
        self.weights_ = list(core.model.parameters())

    def transform_gradients(self, step: Step) -> None:
        torch._foreach_mul_([weight.grad for weight in self.weights_], self.factor)


# ---- wrong plugins ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind, name in CAUGHT.items() if name != "compile"], ids=lambda k: k.__name__)
def test_wrong_plugin_is_caught_by_the_right_check(kind: type[Plugin]) -> None:
    (case,) = cases_of(kind)
    result = check_named(CAUGHT[kind])(case)
    assert result.status is Status.FAILS
    assert not result.text.startswith("raised"), result.text


@pytest.mark.slow
@pytest.mark.parametrize("kind", CAUGHT, ids=lambda kind: kind.__name__)
def test_wrong_plugin_fails_few_other_checks(kind: type[Plugin]) -> None:
    (case,) = cases_of(kind)
    failed = [check.name for check in CHECKS if check(case).status is Status.FAILS]
    assert CAUGHT[kind] in failed
    assert len(failed) <= 5  # noise left in shows wherever a step is taken twice


@pytest.mark.parametrize("kind", [kind for kind, name in CAUGHT.items() if name == "micro"], ids=lambda k: k.__name__)
def test_two_ranks_catch_what_micro_batches_catch(kind: type[Plugin]) -> None:
    (case,) = cases_of(kind)
    assert check_named("ranks")(case).status is Status.FAILS


def test_every_check_catches_someone() -> None:
    assert set(CAUGHT.values()) == {check.name for check in CHECKS}


# ---- right plugins ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", FAST, ids=str)
@pytest.mark.parametrize("kind", [NormPenalty, WeightNoise], ids=lambda kind: kind.__name__)
def test_bundled_plugin_holds(kind: type[Plugin], check: Check) -> None:
    check(cases_of(kind)[0]).require()


# once wrong: dropout of averaged statistics drew from the global generator and knew no float64; VAT's divergence was
# rounded to float32; squares of Cutout moved with the default type; fused momentum was spoilt by a skipped first step
@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("weight_average1", "draws"),
        ("weight_average1", "fp64"),
        ("adversarial2", "micro"),
        ("cutout1", "fp64"),
        ("optimizer2", "fp16"),
        ("early_stopping1", "resume"),
    ],
)
def test_what_a_check_found_once_holds(case: str, name: str) -> None:
    result = check_named(name)(BUNDLED[case])
    assert result.status is Status.HOLDS, result.text


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=str)
@pytest.mark.parametrize("case", BUNDLED.values(), ids=BUNDLED)
def test_every_bundled_plugin_holds(case: Case, check: Check) -> None:
    check(case).require()


PAIRS = list(itertools.combinations([case for name, case in BUNDLED.items() if name.endswith("1")], 2))


# two ranks take two micro-batches each: a pair that is wrong over micro-batches is wrong here
@pytest.mark.slow
@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda case: case.plugin.name)
def test_every_pair_of_plugins_is_the_same_however_a_step_is_split(one: Case, other: Case) -> None:
    def beside() -> list[Plugin]:
        listed = {plugin.name: plugin for plugin in (other.make(), *one.companions(), *other.companions())}
        return [plugin for plugin in listed.values() if plugin.name != one.plugin.name]

    result = check_named("ranks")(Case(one.make, companions=beside))
    result.require()
    assert result.status is not Status.INAPPLICABLE


# ---- how a check ends ------------------------------------------------------------------------------------------------


def test_check_plugin_takes_a_function_that_makes_the_plugin() -> None:
    quick = [check_named(name) for name in ("zero", "micro", "slope", "state")]
    results = check_plugin(lambda: Harmless(0.25), absent=lambda: Harmless(1.0), checks=quick)
    assert [result.check for result in results] == ["zero", "micro", "slope", "state"]
    assert [result.status for result in results] == [Status.HOLDS] * 2 + [Status.INAPPLICABLE] * 2
    assert results[0].case == "Harmless(factor=0.25)"


def test_refusal_is_neither_right_nor_wrong() -> None:
    result = check_named("micro")(Case(lambda: Harmless(refuse=True)))
    assert (result.status, result.text) == (Status.REFUSED, "Harmless(refuse=True): refused; leave it out")
    result.require()


def test_declared_limit_is_reported_with_what_was_measured() -> None:
    result = check_named("micro")(cases_of(Mixup)[0])
    assert result.status is Status.LIMITED
    assert result.text.startswith("partners come from the same micro-batch (4 micro-batches are not one batch: largest")


def test_declared_limit_that_is_none_fails() -> None:
    result = check_named("micro")(Case(lambda: Harmless(promise="micro")))
    assert result.status is Status.FAILS
    assert result.text == "holds, though the plugin declares that it cannot: so it is said"


def test_no_limit_covers_ranks_that_fall_apart() -> None:
    class Excused(SeedsByRank):
        def limits(self) -> dict[str, str]:
            return {"ranks": "who cares"}

    result = check_named("ranks")(Case(Excused))
    assert result.status is Status.FAILS
    assert "hold different weights" in result.text


def test_error_of_a_plugin_is_a_failure_with_its_message() -> None:
    class Raising(Harmless):
        def transform_gradients(self, step: Step) -> None:
            raise ZeroDivisionError("by a plugin")

    for name in ("micro", "ranks"):
        result = check_named(name)(Case(Raising))
        assert result.status is Status.FAILS
        assert "ZeroDivisionError: by a plugin" in result.text


def test_failure_raises_where_it_is_required() -> None:
    result = check_named("resume")(cases_of(ForgetsItsCount)[0])
    with pytest.raises(AssertionError, match=r"ForgetsItsCount\(\): resume fails: a run resumed from within an epoch"):
        result.require()


# ---- cases -----------------------------------------------------------------------------------------------------------


def test_examples_say_task_companions_and_absence() -> None:
    class Exampled(Harmless):
        examples = ({"factor": 0.1}, {"factor": 0.2, "in": "tokens", "with": {"weight_noise": {"std": 0.5}}})
        absent = (None, {"factor": 1.0})

    one, two = cases_of(Exampled)
    assert (one.task, one.absent, list(one.companions())) == (TASKS["images"], None, [])
    assert two.task is TASKS["tokens"]
    assert two.absent is not None
    assert two.absent().factor == 1.0
    assert str(two) == "Exampled(factor=0.2) + WeightNoise(std=0.5)"


def test_settings_go_on_top_of_the_first_example() -> None:
    (case,) = cases_of(InputNoise, {"kind": "multiplicative"})
    assert str(case) == "InputNoise(std=0.3, kind='multiplicative')"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples": ({"in": "image"},)}, "there is no task 'image'; did you mean 'images'?"),
        ({"absent": (None, None)}, "2 entries for 1 examples"),
        ({"examples": ({"size": 3},)}, "unexpected keyword argument 'size'"),
    ],
)
def test_wrong_examples_are_reported(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        cases_of(type("Exampled", (Harmless,), changes))


# ---- what checks depend on -------------------------------------------------------------------------------------------


def test_differences() -> None:
    nan = float("nan")
    a, b = torch.tensor([1.0, nan]), torch.tensor([1.0, 2.0])
    assert difference({"w": b}, {"w": b + 0.25}) == 0.25
    assert difference({"w": a}, {"w": b}) == difference({"w": b}, {"v": b}) == float("inf")
    assert same_bits({"w": [a, nan, "x"]}, {"w": [a.clone(), nan, "x"]})
    for other in (b, a.double(), a[:1]):
        assert not same_bits(a, other)


def generators() -> list[object]:
    return [torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()]  # noqa: NPY002


def test_runs_leave_generators_and_threads_as_they_were() -> None:
    before, threads = generators(), torch.get_num_threads()
    with isolated():
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
    check_named("undone")(cases_of(WeightNoise)[0]).require()
    assert same_bits(before, generators())
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_tasks_are_the_same_at_every_call(task) -> None:
    for noisy in (False, True):
        one, other = (task.model(torch.float64, noisy).state_dict() for _ in range(2))
        assert same_bits(dict(one), dict(other))
    windows = list(task.data(torch.float32, 4).train_loader(seed=0, accumulate=4))
    assert [[len(y) for _, y in window.batches] for window in windows] == [[4] * 4, [4] * 4, [4, 4, 4, 2]]


# ---- on the command line ---------------------------------------------------------------------------------------------


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
def test_mistakes_on_the_command_line_are_reported(args: list[str], message: str, capsys) -> None:
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
