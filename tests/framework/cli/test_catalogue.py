"""The list of installed plugins."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from framework.cli import catalogue as module
from framework.cli import main as cli
from framework.cli.catalogue import catalogue
from framework.errors import UserError
from framework.plugin import Plugin
from framework.plugin.registry import registered
from framework.settings import NonNegative


class Entry:
    """An installed plugin, or one that cannot be imported."""

    distribution = "some-plugins 1.2"

    def __init__(self, name: str, kind: type[Plugin] | None) -> None:
        self.name, self._kind = name, kind

    def load(self) -> type[Plugin]:
        if self._kind is None:
            raise UserError(f"plugin {self.name!r} cannot be imported")
        return self._kind


class Shown(Plugin):
    """Do what :class:`framework.Plugin` says with ``care``.

    More of it, which is not shown.
    """

    needed: NonNegative
    kind: Literal["a", "b"] = "a"
    made: Any = dict
    computed_: int = 3


def show(monkeypatch: pytest.MonkeyPatch, *entries: Entry) -> tuple[str, list[str]]:
    monkeypatch.setattr(module, "registered", lambda: list(entries))
    return catalogue()


def test_a_plugin_is_shown_with_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    text, broken = show(monkeypatch, Entry("shown", Shown))
    lines = text.splitlines()
    assert broken == []
    assert lines[:2] == ["shown  (some-plugins 1.2)", "  Do what framework.Plugin says with care."]
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines[2:]}
    assert rows["needed"] == ["required", "float >= 0"]
    assert rows["kind"][0] == "'a'"
    assert rows["made"][0].endswith("dict")
    assert "name" not in rows
    assert "More of it" not in text


def test_a_broken_plugin_is_told_and_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    text, broken = show(monkeypatch, Entry("lost", None), Entry("shown", Shown))
    assert text.startswith("shown  (")
    assert broken == ["plugin 'lost' cannot be imported"]
    assert show(monkeypatch, Entry("lost", None)) == ("", ["plugin 'lost' cannot be imported"])


def test_without_any_plugin_it_is_told_how_to_get_some(monkeypatch: pytest.MonkeyPatch) -> None:
    text, broken = show(monkeypatch)
    assert text.startswith("No plugin is installed; `pip install -e .`")
    assert broken == []


def test_every_bundled_plugin_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line and line[0] != " "]
    assert names == [entry.name for entry in registered()]
    assert len(names) >= 16
