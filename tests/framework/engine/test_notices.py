"""Plugins get Lightning's notices in the recipe's order, and keep their states."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from framework.engine.notices import Notices, as_callbacks
from framework.plugin import Plugin

TOLD: list[str] = []


class Listens(Plugin):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        TOLD.append(self.name)

    def state_dict(self) -> dict[str, Any]:
        return {"name": self.name}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        TOLD.append(f"{self.name} takes {state_dict['name']}")


class Silent(Plugin):
    pass


class Plain(pl.Callback):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        TOLD.append("plain")


def test_order_among_plain_callbacks(core_of: Any, train: Any) -> None:
    TOLD.clear()
    listed = [Listens(name="1"), Silent(), Listens(name="2"), Plain(), Listens(name="3")]
    callbacks = as_callbacks(listed)
    assert [type(one) for one in callbacks] == [Notices, Plain, Notices]
    train(core_of(), callbacks=callbacks, max_steps=1)
    assert TOLD == ["1", "2", "plain", "3"]


def test_no_plugins_no_callbacks() -> None:
    assert as_callbacks([]) == []


def test_only_what_somebody_listens_to_is_passed_on() -> None:
    notices = Notices([Silent(), Listens()])
    assert set(vars(notices)) >= {"on_train_start"}
    assert "on_train_batch_end" not in vars(notices)


def test_states_go_by_name() -> None:
    TOLD.clear()
    state = Notices([Listens(name="a"), Silent(), Listens(name="b")]).state_dict()
    assert state == {"a": {"name": "a"}, "b": {"name": "b"}}
    alone = Notices([Listens(name="b"), Listens(name="new")], group=1)
    alone.on_load_checkpoint(None, None, {"callbacks": {"plugins/0": state, "ModelCheckpoint": {}}})
    assert TOLD == ["b takes b"]


def test_states_are_found_though_other_plugins_stand_in_the_list(core_of: Any, train: Any, tmp_path: Any) -> None:
    """A resumed or tested run may leave plugins out, or have new ones and plain callbacks between them."""
    keep = pl.callbacks.ModelCheckpoint(tmp_path, filename="kept")
    train(core_of(Listens(name="a"), Listens(name="b")), callbacks=[keep], enable_checkpointing=True)
    TOLD.clear()
    changed = as_callbacks([Listens(name="new"), Plain(), Listens(name="b")])
    train(core_of(), callbacks=changed, ckpt_path=tmp_path / "kept.ckpt", max_epochs=2)
    assert [told for told in TOLD if "takes" in told] == ["b takes b"]


def test_groups_of_plugins_have_keys_of_their_own() -> None:
    keys = [one.state_key for one in as_callbacks([Listens(name="a"), Plain(), Listens(name="b")])]
    assert len(set(keys)) == 3
