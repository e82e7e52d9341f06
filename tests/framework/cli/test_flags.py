"""Flags of the command line: the recipe's parameters, the commands' own, and mistakes in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


def test_help_of_a_recipe_lists_its_parameters_with_defaults_and_help(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("fit", "--help", logs=False)
    text = " ".join(out.split())
    assert code == 0
    assert "Tell sums above zero from sums below. A toy. options:" in text
    assert "--alpha ALPHA strength of the penalty. (type: float, default: 0.001)" in text
    assert "--widths" in text
    assert "--kind {tanh,relu}" in text
    assert "--set PLUGIN.FIELD=VALUE" in text


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--alhpa", "1"], "no such flag: --alhpa; did you mean '--alpha'?"),
        (["--alpha", "much"], "--alpha much: alpha must be a number >= 0"),
        (["--alpha=-1"], "toy_recipe.recipe(alpha=-1.0): alpha must be a number >= 0"),
        (["--alpha", "nan"], "--alpha nan: alpha must be a finite number"),
        (["--alpha"], "--alpha needs a value"),
        (["--epochs", "2.5"], "--epochs 2.5: epochs must be a whole number"),
        (["--kind", "tahn"], "--kind tahn: kind must be one of 'tanh', 'relu'; did you mean 'tanh'?"),
        (["--widths", "[a]"], "--widths [a]: widths must be a list whose every value is a whole number"),
        (["stray"], "unrecognized arguments: stray"),
        (
            ["--set", "norm_penalty"],
            "--set norm_penalty: write it as PLUGIN.FIELD=VALUE, such as weight_noise.std=0.05",
        ),
        (["--set", "norm_penatly.alpha=1"], "the recipe has no plugin 'norm_penatly'; did you mean 'norm_penalty'?"),
        (["--set", "norm_penalty.alhpa=1"], "NormPenalty has no setting 'alhpa'; did you mean 'alpha'?"),
        (["--set", "input_noise.std=-1"], "InputNoise(std=-1.0): std must be a number >= 0"),
        (["--with", "input_nois"], "no plugin is called 'input_nois'; did you mean 'input_noise'?"),
        (
            ["--with", "mixup:0.3"],
            "--with mixup:0.3: write '0.3' as FIELD=VALUE, such as input_noise:std=0.1,kind=masking",
        ),
        (["--with", "mixup:alhpa=0.3"], "Mixup has no setting 'alhpa'; did you mean 'alpha'?"),
        (["--without", "mixup"], "--without mixup: the recipe has no plugin 'mixup'; known: input_noise, norm_penalty"),
        (["--trainer.max_epcohs", "3"], "has no such option; did you mean 'max_epochs'?"),
        (["--trainer.max_epochs", "many"], "--trainer.max_epochs many: max_epochs must be a whole number or None"),
        (["--trainer.max_epochs"], "--trainer.max_epochs needs a value, such as --trainer.max_epochs=VALUE"),
    ],
)
def test_a_mistake_gets_one_line(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, flags: list[str], line: str
) -> None:
    code, out, err = run("fit", *flags, logs="=" not in flags[-1] and len(flags) > 1)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith(f"{line}\n")
    assert err.count("\n") == 1
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("name", ["seed", "logs", "ckpt", "trainer", "help"])
def test_a_parameter_may_not_have_the_name_of_a_flag(
    run: Callable[..., tuple[int, str, str]], recipe_file: Path, name: str
) -> None:
    recipe_file.write_text(
        recipe_file.read_text().replace("    epochs: int = 1,", f"    epochs: int = 1, {name}: int = 0,")
    )
    code, _, err = run("fit")
    assert code == 2
    assert err == f"error: {recipe_file}: the recipe's parameter {name!r} has the name of a flag; rename it\n"


def test_a_parameter_without_default_is_asked_for(run: Callable[..., tuple[int, str, str]], recipe_file: Path) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("alpha: NonNegative = 1e-3", "alpha: NonNegative"))
    assert run("fit")[::2] == (2, "error: the recipe needs --alpha\n")
