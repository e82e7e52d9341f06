"""Flags of the command line: which ones a command has, and parsing their values by declared type."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

from framework.cli import answers
from framework.errors import UserError, did_you_mean, one_line
from framework.values import Text, misfit, read_value

if TYPE_CHECKING:
    import jsonargparse

    from framework.recipe.recipe import Recipe

PROG = answers.PROG
EVALUATE = {
    "validate": "metrics of a trained run on the validation part",
    "test": "metrics of a trained run on the test part",
    "predict": "outputs of a trained run on the test part",
}
_WITH_RECIPE = {
    "fit": "train a recipe",
    **EVALUATE,
    "export": "write the network of a trained run to a file that does not depend on this package",
    "explain": "which plugins act at each hook point, in which order, and how their results combine",
}
# flags that do not simply take one string
_KINDS: dict[str, dict[str, Any]] = {
    "--set": {"action": "append"},
    "--with": {"action": "append"},
    "--without": {"action": "append"},
    "--seed": {"type": int},
    "--resume": {"nargs": "?", "const": True},
    "--raw": {"action": "store_true"},
    "--checkpoint-steps": {"type": int},
    "--attribute": {"type": int},
    "--checkpoint-minutes": {"type": float},
    "--checkpoint-seconds": {"type": float},
    **answers.KINDS,
}
COMMANDS = {
    **_WITH_RECIPE,
    **answers.COMMANDS,
    "ensemble": "evaluate the mean prediction of several runs, all or chosen on validation",
    "soup": "write the mean of the weights of several runs of a recipe",
    "plugins": "list the installed plugins with their settings",
    "check": "test whether a plugin, or every installed one, keeps the framework's guarantees",
}


def make_parser(
    command: str, path: str = "RECIPE", factory: Callable[..., Recipe] | None = None
) -> jsonargparse.ArgumentParser:
    """Return the parser of a command's flags.

    Args:
        command: name of the command.
        path: path of the recipe, for the help text.
        factory: the recipe function, whose parameters become flags; None for help without a recipe.
    """
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog=f"{PROG} {command} {path}",
        usage="%(prog)s [flags]",
        description=_about(factory) or f"{COMMANDS[command].capitalize()}.",
        exit_on_error=False,
        allow_abbrev=False,
        default_env=False,
    )
    if factory is not None:
        _add_parameters(parser, factory, path, command)
    group = parser.add_argument_group(f"flags of {command}")
    for flag, (metavar, text) in _own_flags(command).items():
        kind = _KINDS.get(flag, {}) | ({"metavar": metavar} if metavar else {})
        group.add_argument(flag, help=text, default=argparse.SUPPRESS, **kind)
    return parser


def _about(factory: Callable[..., Recipe] | None) -> str:
    """Return the recipe's docstring up to its sections, such as ``Args:``."""
    text = (inspect.getdoc(factory) if factory is not None else None) or ""
    return re.split(r"\n\s*(?:Args|Raises|Returns|Example)s?:", f"\n{text}")[0].strip()


def _own_flags(command: str) -> dict[str, tuple[str, str]]:
    """Return a command's flags besides the recipe's parameters: placeholder of the value and help text by flag."""
    flags = {
        "--set": ("PLUGIN.FIELD=VALUE", "change a setting of a plugin: weight_noise.std=0.05"),
        "--with": ("PLUGIN:FIELD=VALUE,…", "add a plugin: input_noise:std=0.1,kind=masking"),
        "--without": ("PLUGIN", "remove a plugin"),
        "--trainer.OPTION": ("VALUE", "any option of Lightning's Trainer: --trainer.max_epochs 3"),
    }
    if command in ("fit", "explain", *answers.FLAGS):
        flags["--settings"] = ("FILE", "changes to the recipe in a file, as tune writes it")
    if command == "explain":
        return flags
    flags |= {
        "--seed": ("N", "random seed of the run; default 0"),
        "--logs": ("DIR", "folder of all runs; default lightning_logs"),
    }
    if command == "ablate":
        del flags["--seed"]
    flags |= answers.FLAGS.get(command, {})
    if command == "fit":
        flags |= {
            "--resume": (
                "RUN",
                "resume the recipe's last unfinished run, or the run in that folder",
            ),
            "--weights": ("FILE", "start a new run from the weights of a checkpoint or an exported FILE.safetensors"),
            "--checkpoint-steps": ("N", "save a checkpoint every N steps, besides those at the ends of epochs"),
            "--checkpoint-minutes": ("M", "save a checkpoint every M minutes; default 5"),
            "--checkpoint-seconds": (
                "S",
                "least seconds between those at the ends of epochs; default 2",
            ),
        }
        flags["--attribute"] = ("N", "look every N steps at what each plugin does to gradient and weights")
        flags["--on-nonfinite"] = ("stop|skip", "what to do if the loss is NaN or infinite; default stop")
    if command in (*EVALUATE, "export"):
        flags |= {
            "--ckpt": ("best|last|PATH", "which checkpoint; default best"),
            "--run": ("PATH", "folder of the run; default the recipe's newest in --logs"),
        }
    if command == "predict":
        flags["--out"] = ("FILE", "write the outputs to this file with torch.save instead of printing them")
    if command == "export":
        flags |= {
            "--out": ("FILE", "FILE.safetensors for the weights, FILE.pt2 for the network through torch.export"),
            "--raw": ("", "export the weights as training left them, not an average that a plugin keeps"),
        }
    return flags


def _add_parameters(
    parser: jsonargparse.ArgumentParser, factory: Callable[..., Recipe], path: str, command: str
) -> None:
    """Add a flag for each parameter of the recipe, with help from its docstring."""
    taken = {name.removeprefix("--").replace("-", "_") for one in {*_WITH_RECIPE, command} for name in _own_flags(one)}
    for name in inspect.signature(factory).parameters:
        if name in taken | {"help", "trainer"}:
            raise UserError(f"{path}: the recipe's parameter {name!r} has the name of a flag; rename it")
    try:
        parser.add_function_arguments(_plainly_typed(factory), as_group=False, fail_untyped=False)
    except ValueError as error:
        raise UserError(f"{path}: the recipe's parameters cannot be flags: {error}") from error


def _plainly_typed(factory: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """Return a copy of the function whose annotations have no bounds, so that help shows plain types."""
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


def take_trainer_options(flags: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Separate ``--trainer.*`` options from the other flags.

    Returns:
        The other flags, and the options by name, read by the type that Lightning declares.
    """
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
            raise UserError(f"--trainer.{name} needs a value, such as --trainer.{name}=VALUE")
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


def parse_flags(
    parser: jsonargparse.ArgumentParser, factory: Callable[..., Recipe], flags: Sequence[str]
) -> dict[str, Any]:
    """Return the values of the flags that were given, read by their declared types."""
    known = [option for action in parser._actions for option in action.option_strings]
    for flag in flags:
        name = flag.partition("=")[0]
        if name.startswith("--") and name not in known:
            raise UserError(f"no such flag: {name}{did_you_mean(name, known)}")
    try:
        return dict(vars(parser.parse_args(list(flags), defaults=False)))
    except argparse.ArgumentError as error:
        _raise_bad_flag(error, factory, flags)


def _raise_bad_flag(error: argparse.ArgumentError, factory: Callable[..., Recipe], flags: Sequence[str]) -> NoReturn:
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


def parse_setting(text: str) -> tuple[str, Text]:
    """Return ``PLUGIN.FIELD=VALUE`` as the path ``PLUGIN.FIELD`` and its value."""
    path, equals, value = text.partition("=")
    if not equals or "." not in path:
        raise UserError(f"--set {text}: write it as PLUGIN.FIELD=VALUE, such as weight_noise.std=0.05")
    return path.strip(), Text(value)


def parse_addition(text: str) -> tuple[str, dict[str, Text]]:
    """Return ``PLUGIN:FIELD=VALUE,…`` as the plugin's name and its settings."""
    name, _, settings = text.partition(":")
    return name.strip(), parse_fields(settings, f"--with {text}")


def parse_fields(settings: str, who: str) -> dict[str, Text]:
    """Return ``FIELD=VALUE,…`` as values by field.

    Args:
        settings: the text.
        who: the flag it was given with, for error messages.
    """
    fields = {}
    for part in _split(settings):
        field, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"{who}: write {part!r} as FIELD=VALUE, such as input_noise:std=0.1,kind=masking")
        fields[field.strip()] = Text(value)
    return fields


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets and quotes."""
    return [
        part for part in re.findall(r"""(?:[^,\[{('"]|\[[^\]]*\]|\{[^}]*\}|\([^)]*\)|'[^']*'|"[^"]*")+""", text) if part
    ]
