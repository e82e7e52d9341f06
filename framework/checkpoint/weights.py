"""Weights of a network from a file, of whatever kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from framework.checkpoint.file import read_checkpoint, read_data
from framework.errors import UserError, one_line

if TYPE_CHECKING:
    from framework.engine.core import Core


def core_with_weights(
    model: nn.Module, make: Callable[[], Core], path: str | Path, prefix: str = "model.", argument: str = "weights"
) -> Core:
    """Make a core of a network, plugins' changes to it included, and load weights into it.

    Weights by the names of the network as it is are loaded before plugins change it, as LoRA does, others after it.

    Args:
        model: the network.
        make: makes the core.
        path: as for :func:`weights_in`.
        prefix: as for :func:`weights_in`.
        argument: what the user gave the path by, which errors name.

    Raises:
        UserError: if the file is unusable, or its weights are of another network.
    """
    given = f"{argument}={str(path)!r}"
    state = weights_in(path, prefix, argument)
    unchanged = state.keys() == model.state_dict().keys()
    if unchanged:
        _load(model, state, given)
    core = make()
    if not unchanged:
        _load(core.model, state, given)
    return core


def weights_in(path: str | Path, prefix: str = "model.", argument: str = "weights") -> dict[str, Tensor]:
    """Return a network's weights from a file.

    Args:
        path: a checkpoint of this framework or of Lightning, a saved ``state_dict()``, or ``FILE.safetensors``.
        prefix: what stands before the names of the network's weights in a checkpoint of this framework.
        argument: what the user gave the path by, which errors name.

    Raises:
        UserError: if the file is unusable, or holds no weights.
    """
    if Path(path).suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{argument}={str(path)!r}: cannot be read: {one_line(error)}") from error
    content = read_data(path)
    if "framework" not in content:
        state = content.get("state_dict", content)
        if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
            raise UserError(f"{argument}={str(path)!r}: holds no weights by name; save model.state_dict()")
        return dict(state)
    kept: dict[str, Tensor] = read_checkpoint(path)["state_dict"]
    return {name.removeprefix(prefix): value for name, value in kept.items() if name.startswith(prefix)}


def _load(model: nn.Module, state: Mapping[str, Tensor], given: str) -> None:
    try:
        model.load_state_dict(state)
    except (RuntimeError, AttributeError) as error:  # the latter for values that are no tensors
        raise UserError(
            f"{given}: of another network: {one_line(error)}; if a plugin had changed it, as LoRA does,"
            " give the file that export writes: FILE.safetensors"
        ) from error
