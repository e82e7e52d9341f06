"""Declared relations are checked, and reported with their reason."""

from __future__ import annotations

import pytest

from framework.errors import UserError
from framework.plugin import Plugin
from framework.plugin.relations import check_relations, relations_of


class Noise(Plugin):
    std: float = 0.1


class FineNoise(Noise):
    pass


class Mix(Plugin):
    after = {"Noise": "noise is for clean inputs"}
    conflicts = {"Other": "both mix"}


class Other(Plugin):
    before = {"Noise": "it measures what noise would hide"}


class Needs(Plugin):
    requires = {"Mix": "it unmixes"}


@pytest.mark.parametrize("good", [[], [Noise(), Mix()], [Other(), Noise()], [Mix(), Needs()], [Needs(), Mix()]])
def test_what_agrees(good: list[Plugin]) -> None:
    check_relations(good)


@pytest.mark.parametrize(
    ("plugins", "words"),
    [
        ([Mix(), Other()], "'mix' conflicts with 'other': both mix; take one out (--without other)"),
        ([Other(), Mix()], "'mix' conflicts with 'other': both mix; take one out (--without other)"),
        ([Mix(), Noise()], "'mix' must stand after 'noise': noise is for clean inputs; move it down in the recipe"),
        ([Noise(), Other()], "'other' must stand before 'noise': it measures what noise would hide; move it up"),
        ([Needs()], "'needs' requires Mix: it unmixes; add Mix to the recipe's plugins"),
        ([Noise(), Noise()], "two plugins are called 'noise'; give one of them another name="),
        ([Mix(), FineNoise()], "'mix' must stand after 'fine_noise'"),
        ([Mix(), Other(name="x")], "'mix' conflicts with 'x'"),
    ],
)
def test_what_does_not(plugins: list[Plugin], words: str) -> None:
    with pytest.raises(UserError) as caught:
        check_relations(plugins)
    assert str(caught.value).startswith(words)


def test_two_of_a_class_under_two_names() -> None:
    check_relations([Noise(), Noise(name="more")])


def test_relations_are_distinguished() -> None:
    assert list(relations_of(Mix())) == [
        ("after", "Noise", "noise is for clean inputs"),
        ("conflicts", "Other", "both mix"),
    ]
