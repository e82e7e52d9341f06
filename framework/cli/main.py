"""The command line. Nothing heavy is imported before a recipe is loaded, so that help comes at once."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FunctionType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

from framework.errors import UserError, did_you_mean, one_line
from framework.values import Text, misfit, read_value
from framework.version import __version__

if TYPE_CHECKING:
    import jsonargparse

    from framework.recipe.recipe import Recipe

PROG = "python -m framework"
_EVALUATE = {
    "validate": "metrics of a trained run on the validation part",
    "test": "metrics of a trained run on the test part",
    "predict": "outputs of a trained run on the test part",
}
_WITH_RECIPE = {
    "fit": "train a recipe",
    **_EVALUATE,
    "export": "write the network of a trained run to a file that needs nothing of this package",
    "explain": "who answers at each hook point, in which order, and how the answers combine",
}
# what sets flags apart from those that take one text
_KINDS: dict[str, dict[str, Any]] = {
    "--set": {"action": "append"},
    "--with": {"action": "append"},
    "--without": {"action": "append"},
    "--seed": {"type": int},
    "--resume": {"nargs": "?", "const": True},
    "--raw": {"action": "store_true"},
    "--checkpoint-steps": {"type": int},
    "--checkpoint-minutes": {"type": float},
}
_COMMANDS = {
    **_WITH_RECIPE,
    "plugins": "the plugins that are installed, with their settings",
    "check": "what a plugin, or every installed one, holds of what the framework promises",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the arguments, those of the process by default.

    Returns:
        0; 1 where a recipe raised or an installed plugin is broken; 2 for a mistake of the user, told in one line;
        130 on Ctrl-C, 143 on SIGTERM.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    # albumentations asks the network for a newer release unless told not to
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        return _run(args)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        return 128 + getattr(interrupt, "number", 2)
    except Exception as error:
        if not _print_fault(error):
            _print_traceback(error, args[1] if len(args) > 1 else "")
        return 1


def _run(args: list[str]) -> int:
    command = args[0] if args else "--help"
    if command in ("-h", "--help"):
        print(_overview())
        return 0
    if command == "--version":
        print(f"jtilde {__version__}")
        return 0
    if command not in _COMMANDS:
        raise UserError(f"no such command: {command}{did_you_mean(command, _COMMANDS)}")
    if command == "plugins":
        return _plugins(args[1:])
    if command == "check":
        return _check(args[1:])
    return _with_recipe(command, args[1:])


def _overview() -> str:
    width = max(map(len, _COMMANDS))
    lines = [f"  {name.ljust(width)}  {text}" for name, text in _COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROG} COMMAND [RECIPE] [flags]",
            "",
            "Train neural networks with regularizers and optimizers as plugins.",
            "",
            *lines,
            "",
            "A recipe is a Python file that defines recipe(…) -> Recipe; its parameters are flags:",
            f"  {PROG} fit RECIPE --help",
        ]
    )


def _plugins(args: list[str]) -> int:
    if args and args[0] in ("-h", "--help"):
        print(f"usage: {PROG} plugins\n\n{_COMMANDS['plugins'].capitalize()}. Only a recipe or --with turns one on.")
        return 0
    if args:
        raise UserError(f"plugins takes no arguments; received {args[0]!r}")
    from framework.cli.catalogue import catalogue

    text, broken = catalogue()
    print(text)
    for line in broken:
        print(f"error: {line}", file=sys.stderr)
    return 1 if broken else 0


def _check(args: list[str]) -> int:
    from framework.testing import report

    if args and args[0] in ("-h", "--help"):
        print(f"usage: {PROG} check [all | NAME | MODULE:CLASS][:FIELD=VALUE,…] [CHECK …]\n")
        print("Try on small networks what a plugin, or every installed one, holds; exit with 1 where a check fails.")
        print("Settings go on top of the class's first example; without any, all of its examples are checked.")
        print(f"The checks, all of them unless some are named:\n\n{report.claims()}")
        return 0
    target, *names = args or ["all"]
    checks = report.chosen(names)
    if target == "all":
        return report.check_every(checks)
    name, settings = report.parted(target)
    return report.check_one(name, _fields(settings, f"check {target}"), checks)


# ---- commands on a recipe --------------------------------------------------------------------------------------------


def _with_recipe(command: str, args: list[str]) -> int:
    if args and args[0] in ("-h", "--help"):
        _parser(command).print_help()
        return 0
    if not args or args[0].startswith("-"):
        raise UserError(f"the recipe comes first: {PROG} {command} RECIPE [flags]")
    from framework.recipe.load import load_recipe

    path, *flags = args
    factory = load_recipe(path)
    parser = _parser(command, path, factory)
    if {"-h", "--help"} & {*flags}:
        parser.print_help()
        return 0
    flags, trainer = _take_trainer_options(flags)
    given = _parse(parser, factory, flags)
    out = given.pop("out", None)
    order: dict[str, Any] = {
        "parameters": {name: given.pop(name) for name in inspect.signature(factory).parameters if name in given},
        "trainer": trainer,
        "settings": dict(_setting(text) for text in given.pop("set", None) or []),
        "with_": [_addition(text) for text in given.pop("with", None) or []],
        "without": given.pop("without", None) or [],
        **given,
    }
    if command == "explain":
        print(_explained(factory, order))
        return 0
    if command == "export":
        return _exported(path, order, out)
    return _fit(path, order) if command == "fit" else _evaluated(command, path, order, out)


def _parser(
    command: str, path: str = "RECIPE", factory: Callable[..., Recipe] | None = None
) -> jsonargparse.ArgumentParser:
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog=f"{PROG} {command} {path}",
        usage="%(prog)s [flags]",
        description=_about(factory) or f"{_COMMANDS[command].capitalize()}.",
        exit_on_error=False,
        allow_abbrev=False,
        default_env=False,
    )
    if factory is not None:
        _add_parameters(parser, factory, path)
    group = parser.add_argument_group(f"flags of {command}")
    for flag, (metavar, text) in _own_flags(command).items():
        kind = _KINDS.get(flag, {}) | ({"metavar": metavar} if metavar else {})
        group.add_argument(flag, help=text, default=argparse.SUPPRESS, **kind)
    return parser


def _about(factory: Callable[..., Recipe] | None) -> str:
    """Return what a recipe's docstring says before its arguments."""
    text = (inspect.getdoc(factory) if factory is not None else None) or ""
    return re.split(r"\n\s*(?:Args|Raises|Returns|Example)s?:", f"\n{text}")[0].strip()


def _own_flags(command: str) -> dict[str, tuple[str, str]]:
    """Return the flags that every recipe has, with the name of their value and their help."""
    flags = {
        "--set": ("PLUGIN.FIELD=VALUE", "change a plugin's setting: weight_noise.std=0.05"),
        "--with": ("PLUGIN:FIELD=VALUE,…", "add a plugin: input_noise:std=0.1,kind=masking"),
        "--without": ("PLUGIN", "leave a plugin out"),
        "--trainer.OPTION": ("VALUE", "any option of Lightning's Trainer: --trainer.max_epochs 3"),
    }
    if command == "explain":
        return flags
    flags |= {
        "--seed": ("N", "keys every draw; 0 unless given"),
        "--logs": ("DIR", "folder of all runs; lightning_logs unless given"),
    }
    if command == "fit":
        flags |= {
            "--resume": (
                "RUN",
                "go on with the recipe's last unfinished run, or with the one of that folder",
            ),
            "--weights": ("CHECKPOINT", "start a new run from the weights of a checkpoint"),
            "--checkpoint-steps": ("N", "a checkpoint every N steps, besides the one at the end of each epoch"),
            "--checkpoint-minutes": ("M", "a checkpoint every M minutes; 5 unless given"),
        }
        flags["--on-nonfinite"] = ("stop|skip", "where the loss turns nan or infinite; stop unless given")
    if command in (*_EVALUATE, "export"):
        flags |= {
            "--ckpt": ("best|last|PATH", "which checkpoint; best unless given"),
            "--run": ("PATH", "folder of the run; the recipe's newest in --logs unless given"),
        }
    if command == "predict":
        flags["--out"] = ("FILE", "write the outputs there by torch.save instead of printing them")
    if command == "export":
        flags |= {
            "--out": ("FILE", "FILE.safetensors for the weights, FILE.pt2 for the network by torch.export"),
            "--raw": ("", "the weights as training left them, not the average where a plugin keeps one"),
        }
    return flags


def _add_parameters(parser: jsonargparse.ArgumentParser, factory: Callable[..., Recipe], path: str) -> None:
    """Make the recipe's parameters flags, with help from its docstring."""
    taken = {name.removeprefix("--").replace("-", "_") for command in _WITH_RECIPE for name in _own_flags(command)}
    for name in inspect.signature(factory).parameters:
        if name in taken | {"help", "trainer"}:
            raise UserError(f"{path}: the recipe's parameter {name!r} has the name of a flag; rename it")
    try:
        parser.add_function_arguments(_plainly_typed(factory), as_group=False, fail_untyped=False)
    except ValueError as error:
        raise UserError(f"{path}: the recipe's parameters cannot be flags: {error}") from error


def _plainly_typed(factory: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """Return a copy whose annotations carry no bounds: help shows them as plain types."""
    function = inspect.unwrap(factory)
    assert inspect.isfunction(function)
    copy = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__doc__ = function.__doc__
    copy.__module__ = function.__module__
    copy.__annotations__ = get_type_hints(function)
    return copy


def _take_trainer_options(flags: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Part ``--trainer.name value`` and ``--trainer.name=value`` from the other flags."""
    rest: list[str] = []
    options: dict[str, Any] = {}
    waiting = iter(flags)
    for flag in waiting:
        if not flag.startswith("--trainer."):
            rest.append(flag)
            continue
        name, equals, value = flag.removeprefix("--trainer.").partition("=")
        annotation = _trainer_option(name)
        text = value if equals else next(waiting, None)
        if text is None:
            raise UserError(f"--trainer.{name} needs a value")
        options[name] = read_value(Text(text), annotation)
        problem = misfit(options[name], annotation)
        if problem:
            raise UserError(f"--trainer.{name} {text}: {name} must be {problem}")
    return rest, options


def _trainer_option(name: str) -> Any:
    from pytorch_lightning import Trainer

    from framework.recipe.recipe import check_trainer_options

    check_trainer_options({name: None})
    return get_type_hints(Trainer.__init__).get(name, Any)


def _parse(parser: jsonargparse.ArgumentParser, factory: Callable[..., Recipe], flags: Sequence[str]) -> dict[str, Any]:
    """Return the flags that were given, read by their types."""
    known = [option for action in parser._actions for option in action.option_strings]
    for flag in flags:
        name = flag.partition("=")[0]
        if name.startswith("--") and name not in known:
            raise UserError(f"no such flag: {name}{did_you_mean(name, known)}")
    try:
        return dict(vars(parser.parse_args(list(flags), defaults=False)))
    except argparse.ArgumentError as error:
        _tell_bad_flag(error, factory, flags)


def _tell_bad_flag(error: argparse.ArgumentError, factory: Callable[..., Recipe], flags: Sequence[str]) -> NoReturn:
    message = one_line(error)
    key = re.match(r'Parser key "(\w+)"', message)
    if key:
        name = key[1]
        hints = {"seed": int, **get_type_hints(factory, include_extras=True)}
        typed = f"{' '.join(flags)} ".partition(f"--{name}")[2].lstrip(" =").partition(" ")[0]
        annotation = hints.get(name, Any)
        problem = misfit(read_value(Text(typed), annotation), annotation)
        if problem:
            raise UserError(f"--{name} {typed}: {name} must be {problem}") from error
    missing = message.removeprefix("the following arguments are required: ")
    if missing != message:
        raise UserError(f"the recipe needs --{missing.replace(', ', ', --')}") from error
    raise UserError(message.removeprefix("argument ").replace(": expected one argument", " needs a value")) from error


def _setting(text: str) -> tuple[str, Text]:
    path, equals, value = text.partition("=")
    if not equals or "." not in path:
        raise UserError(f"--set {text}: write it as PLUGIN.FIELD=VALUE, such as weight_noise.std=0.05")
    return path.strip(), Text(value)


def _addition(text: str) -> tuple[str, dict[str, Text]]:
    name, _, settings = text.partition(":")
    return name.strip(), _fields(settings, f"--with {text}")


def _fields(settings: str, who: str) -> dict[str, Text]:
    """Return ``field=value,field=value`` as values by field."""
    fields = {}
    for part in _split(settings):
        field, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"{who}: write {part!r} as FIELD=VALUE, such as input_noise:std=0.1,kind=masking")
        fields[field.strip()] = Text(value)
    return fields


def _split(text: str) -> list[str]:
    """Split at the commas that stand in no brackets and no quotes."""
    return [
        part for part in re.findall(r"""(?:[^,\[{('"]|\[[^\]]*\]|\{[^}]*\}|\([^)]*\)|'[^']*'|"[^"]*")+""", text) if part
    ]


def _explained(factory: Callable[..., Recipe], order: Mapping[str, Any]) -> str:
    import dataclasses

    from framework.recipe.edits import apply_edits
    from framework.recipe.load import build_recipe, plugins_defined_by
    from framework.report.explain import explain

    recipe = build_recipe(factory, order["parameters"])
    edits = {name: order[name] for name in ("settings", "with_", "without")}
    recipe = apply_edits(recipe, **edits, local=plugins_defined_by(factory))
    return explain(dataclasses.replace(recipe, trainer={**recipe.trainer, **order["trainer"]}))


def _fit(path: str, order: Mapping[str, Any]) -> int:
    from pytorch_lightning.utilities import rank_zero_only

    from framework.run.fit import Interrupted, fit
    from framework.run.summary import summarize

    tell = rank_zero_only(print)  # under ddp every rank comes through here
    try:
        run = fit(path, **order)
    except Interrupted as interrupted:
        tell(f"\n{summarize(interrupted.run)}")
        raise
    tell(f"\n{summarize(run)}")
    return 0


def _evaluated(command: str, path: str, order: Mapping[str, Any], out: str | None) -> int:
    from framework.report.table import table
    from framework.run import evaluate

    if command == "predict":
        _deliver(evaluate.predict(path, **order), out)
    else:
        metrics = {"validate": evaluate.validate, "test": evaluate.test}[command](path, **order)
        print(table([[name, f"{value:.4f}"] for name, value in sorted(metrics.items())], ["metric", "value"]))
    return 0


def _exported(path: str, order: Mapping[str, Any], out: str | None) -> int:
    from framework.run.export import export

    if out is None:
        raise UserError("export needs --out FILE.safetensors for the weights, or --out FILE.pt2 for the network")
    facts = export(path, out, **order)
    print(f"{facts['weights']} weights of {facts['recipe']}, epoch {facts['epoch']}, step {facts['step']}, in {out}")
    return 0


def _deliver(outputs: Any, out: str | None) -> None:
    import torch

    if out is None:
        print(outputs)
        return
    try:
        torch.save(outputs, out)
    except (OSError, RuntimeError) as error:
        raise UserError(f"--out {out}: cannot be written: {error}") from error
    print(f"{len(outputs):,} outputs in {out}")


# ---- tracebacks ------------------------------------------------------------------------------------------------------


def _print_fault(error: BaseException) -> bool:
    """Print which plugin raised, then its traceback; tell whether a plugin did."""
    if "framework.plugin.plugin" not in sys.modules:
        return False
    from framework.run.faults import name_plugin, plugins_trace

    told = name_plugin(error)
    if told is None:
        return False
    print(f"error: {told}", file=sys.stderr)
    error.__notes__ = [one for one in getattr(error, "__notes__", ()) if one != told]
    traceback.print_exception(error.with_traceback(plugins_trace(error.__traceback__)))
    return True


def _print_traceback(error: BaseException, path: str) -> None:
    """Print where a recipe went wrong: from its own first line on, without the frames that called it."""
    recipe = str(Path(path).expanduser().resolve()) if path else ""
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = _from_file(seen.__traceback__, recipe)
        if isinstance(seen, SyntaxError) and seen.filename == recipe:
            seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
    traceback.print_exception(error)


def _from_file(trace: TracebackType | None, file: str) -> TracebackType | None:
    own = trace
    while own is not None and own.tb_frame.f_code.co_filename != file:
        own = own.tb_next
    return own or trace
