"""The commands of the command line, each a function of its arguments that returns the exit code.

Heavy imports stand inside the functions, so that ``--help`` need not wait for torch.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from framework.cli import answers
from framework.cli.flags import (
    COMMANDS,
    PROG,
    make_parser,
    parse_addition,
    parse_fields,
    parse_flags,
    parse_setting,
    take_trainer_options,
)
from framework.cli.plain import parse_plain
from framework.errors import UserError

if TYPE_CHECKING:
    from framework.recipe.recipe import Recipe


def list_plugins(args: list[str]) -> int:
    """Print the installed plugins with their settings."""
    if args and args[0] in ("-h", "--help"):
        print(f"usage: {PROG} plugins\n\n{COMMANDS['plugins'].capitalize()}. Only a recipe or --with turns one on.")
        return 0
    if args:
        raise UserError(f"plugins takes no arguments; received {args[0]!r}")
    from framework.cli.catalogue import catalogue

    text, broken = catalogue()
    print(text)
    for line in broken:
        print(f"error: {line}", file=sys.stderr)
    return 1 if broken else 0


def check(args: list[str]) -> int:
    """Test plugins against the framework's guarantees; see :mod:`framework.testing`."""
    from framework.testing import report

    if args and args[0] in ("-h", "--help"):
        print(f"usage: {PROG} check [all | NAME | MODULE:CLASS][:FIELD=VALUE,…] [CHECK …]\n")
        print("Test on small networks whether a plugin, or every installed one, keeps the framework's guarantees.")
        print("Settings override those of the class's first example; without any, all of its examples are checked.")
        print("The exit code is 1 if a check fails. The checks, all of which run unless some are named:\n")
        print(report.claims())
        return 0
    target, *names = args or ["all"]
    checks = report.chosen(names)
    if target == "all":
        return report.check_every(checks)
    name, settings = report.split_target(target)
    return report.check_one(name, parse_fields(settings, f"check {target}"), checks)


def ensemble(args: list[str]) -> int:
    """Evaluate the mean prediction of runs; see :func:`framework.run.ensemble.ensemble`."""
    parser = argparse.ArgumentParser(
        prog=f"{PROG} ensemble RECIPE", description=f"{COMMANDS['ensemble'].capitalize()}.", exit_on_error=False
    )
    parser.add_argument("recipe", nargs="?", help="the runs' recipe")
    parser.add_argument("--runs", nargs="+", default=[], metavar="RUN", help="folders of runs, or that hold runs")
    parser.add_argument("--out", metavar="FILE.pt2", help="write the ensemble as one network")
    parser.add_argument("--greedy", action="store_true", help="choose members on the validation part; default all")
    parser.add_argument("--rounds", type=int, default=16, help="with --greedy, members to add; default 16")
    parser.add_argument("--outputs", help="softmax, bernoulli or normal; default what the loss reads")
    given = parse_plain("ensemble", parser, args)
    if given.recipe is None or not given.runs:
        raise UserError(f"ensemble needs a recipe and runs: {PROG} ensemble RECIPE --runs RUN RUN")
    from framework.report.table import table
    from framework.run.ensemble import ensemble as make

    options = {"greedy": given.greedy, "rounds": given.rounds, "outputs": given.outputs}
    made = make(given.recipe, given.runs, out=given.out, **options)
    tags = sorted(next(iter(made.members.values())))
    rows = [
        [str(folder), f"{made.weights.get(folder, 0):.2f}", *(f"{found[tag]:.4f}" for tag in tags)]
        for folder, found in made.members.items()
    ]
    whole = ["ensemble", "1.00", *(f"{made.metrics[tag]:.4f}" for tag in tags)]
    print(table([*rows, whole], ["", "weight", *tags]))
    tested = [[tag, f"{value:.4f}"] for tag, value in sorted(made.metrics.items()) if tag.startswith("test/")]
    if tested:
        print(f"\n{table(tested)}")
    if made.out is not None:
        print(f"\nwritten: {made.out}")
    return 0


def soup(args: list[str]) -> int:
    """Write the mean of the weights of several runs; see :func:`framework.run.soup.soup`."""
    parser = argparse.ArgumentParser(
        prog=f"{PROG} soup RECIPE", description=f"{COMMANDS['soup'].capitalize()}.", exit_on_error=False
    )
    parser.add_argument("recipe", nargs="?", help="the runs' recipe")
    parser.add_argument("--runs", nargs="+", default=[], metavar="RUN", help="folders of the runs")
    parser.add_argument("--out", metavar="FILE.safetensors", help="the file")
    parser.add_argument("--greedy", action="store_true", help="add a run only if validation does not get worse")
    given = parse_plain("soup", parser, args)
    if given.recipe is None or given.out is None:
        raise UserError(
            f"soup needs a recipe, runs and a file: {PROG} soup RECIPE --runs RUN RUN --out FILE.safetensors"
        )
    from framework.report.table import table
    from framework.run.soup import soup as make

    made = make(given.recipe, given.runs, out=given.out, greedy=given.greedy)
    tags = sorted(made.metrics)
    rows = [
        [f"{folder}{'' if folder in made.used else ' (left out)'}", *(f"{found[tag]:.4f}" for tag in tags)]
        for folder, found in made.ingredients.items()
    ]
    print(table([*rows, [f"mean of {len(made.used)}", *(f"{made.metrics[tag]:.4f}" for tag in tags)]], ["", *tags]))
    print(f"\ntest it: {PROG} test {given.recipe} --run {made.used[0]} --ckpt {made.out}")
    return 0


def run_with_recipe(command: str, args: list[str]) -> int:
    """Run a command that takes a recipe, such as ``fit``.

    Args:
        command: name of the command.
        args: path of the recipe, then the flags.
    """
    if args and args[0] in ("-h", "--help"):
        make_parser(command).print_help()
        return 0
    if not args or args[0].startswith("-"):
        raise UserError(f"the recipe comes first: {PROG} {command} RECIPE [flags]")
    from framework.recipe.changes import read_changes
    from framework.recipe.load import load_recipe

    path, *flags = args
    factory = load_recipe(path)
    parser = make_parser(command, path, factory)
    if {"-h", "--help"} & {*flags}:
        parser.print_help()
        return 0
    flags, trainer = take_trainer_options(flags)
    given = parse_flags(parser, factory, flags)
    out = given.pop("out", None)
    kept = read_changes(given.pop("settings")) if "settings" in given else {}
    overrides: dict[str, Any] = {
        "parameters": {
            **kept.get("parameters", {}),
            **{name: given.pop(name) for name in inspect.signature(factory).parameters if name in given},
        },
        "trainer": {**kept.get("trainer", {}), **trainer},
        "settings": {
            **kept.get("settings", {}),
            **dict(parse_setting(text) for text in given.pop("set", None) or []),
        },
        "with_": [*kept.get("with_", []), *(parse_addition(text) for text in given.pop("with", None) or [])],
        "without": [*kept.get("without", []), *(given.pop("without", None) or [])],
        **given,
    }
    if command in answers.FLAGS:
        return answers.run(command, path, overrides)
    if command == "explain":
        print(_explain(factory, overrides))
        return 0
    if command == "export":
        return _export(path, overrides, out)
    return _fit(path, overrides) if command == "fit" else _evaluate(command, path, overrides, out)


def _explain(factory: Callable[..., Recipe], overrides: Mapping[str, Any]) -> str:
    import dataclasses

    from framework.recipe.edits import apply_edits
    from framework.recipe.load import build_recipe, plugins_defined_by
    from framework.report.explain import explain

    recipe = build_recipe(factory, overrides["parameters"])
    edits = {name: overrides[name] for name in ("settings", "with_", "without")}
    recipe = apply_edits(recipe, **edits, local=plugins_defined_by(factory))
    return explain(dataclasses.replace(recipe, trainer={**recipe.trainer, **overrides["trainer"]}))


def _fit(path: str, overrides: Mapping[str, Any]) -> int:
    from pytorch_lightning.utilities import rank_zero_only

    from framework.run.fit import fit
    from framework.run.result import Interrupted
    from framework.run.summary import summarize

    print_once = rank_zero_only(print)  # with ddp every rank runs this function
    try:
        run = fit(path, **overrides)
    except Interrupted as interrupted:
        print_once(f"\n{summarize(interrupted.run)}")
        raise
    print_once(f"\n{summarize(run)}")
    return 0


def _evaluate(command: str, path: str, overrides: Mapping[str, Any], out: str | None) -> int:
    from framework.report.table import table
    from framework.run import evaluate

    if command == "predict":
        _write_outputs(evaluate.predict(path, **overrides), out)
    else:
        metrics = {"validate": evaluate.validate, "test": evaluate.test}[command](path, **overrides)
        print(table([[name, f"{value:.4f}"] for name, value in sorted(metrics.items())], ["metric", "value"]))
    return 0


def _export(path: str, overrides: Mapping[str, Any], out: str | None) -> int:
    from framework.run.export import export

    if out is None:
        raise UserError("export needs --out FILE.safetensors for the weights, or --out FILE.pt2 for the network")
    facts = export(path, out, **overrides)
    print(f"{facts['weights']} weights of {facts['recipe']}, epoch {facts['epoch']}, step {facts['step']}, in {out}")
    return 0


def _write_outputs(outputs: Any, out: str | None) -> None:
    import torch

    if out is None:
        print(outputs)
        return
    try:
        torch.save(outputs, out)
    except (OSError, RuntimeError) as error:
        raise UserError(f"--out {out}: cannot be written: {error}") from error
    print(f"{len(outputs):,} outputs in {out}")
