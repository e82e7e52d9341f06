"""Errors that torch raises for mistakes in data and shapes, in one line: which layer, which tensor, what to do."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

from pytorch_lightning import LightningModule
from torch import Tensor, nn

from framework.data.listed import hint_of
from framework.engine.calls import in_words

_Explain = Callable[[re.Match[str], str, str], str]


def explain_mistake(model: nn.Module, error: BaseException, part: Any = None) -> str | None:
    """Return one line on an error of torch's that a mistake in data or shapes causes, None if it is another one.

    Args:
        model: the network, whose layers are named.
        error: the error, with the traceback of the call that raised it.
        part: the training part of the data, None if it is not known.
    """
    kinds = IndexError | ValueError | RuntimeError | TypeError
    if isinstance(error, kinds) or (isinstance(error, AttributeError) and _in_torch(error)):
        for pattern, explain in _MISTAKES:
            if found := re.search(pattern, str(error)):
                where, given = _where(model, error)
                return explain(found, where, given) + (hint_of(part) if explain in _OF_SHAPES else "")
    return None


def _in_torch(error: BaseException) -> bool:
    """Return whether an error was raised in torch's own code, as a layer or loss that is given no tensor does."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__", "")).startswith("torch.")


def _where(model: nn.Module, error: BaseException) -> tuple[str, str]:
    """Return the layer that raised, in words, and the tensors that it, or else the loss, was called with."""
    layers = {layer: name for name, layer in model.named_modules()}
    where, given = "the loss", ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        who = _first_argument(frame)
        if isinstance(who, nn.Module) and not isinstance(who, LightningModule):
            if who in layers:
                name = layers[who]
                where = f"layer {name!r} ({type(who).__name__})" if name else f"the network ({type(who).__name__})"
            elif where.startswith("the loss"):
                where = f"the loss ({type(who).__name__})"
        if isinstance(who, LightningModule) and frame.f_code.co_name == "data_loss":
            where = "the loss"
        if isinstance(who, LightningModule) and frame.f_code.co_name == "forward":
            given = f"the input is {in_words(frame.f_locals.get('x'))}"
        tensors = {k: v for k, v in frame.f_locals.items() if isinstance(v, Tensor)}
        if tensors and where != "":
            given = "with " + ", ".join(f"{name} {_shape(tensor)}" for name, tensor in list(tensors.items())[:3])
    return where, f" ({given})" if given else ""


def _shape(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _first_argument(frame: FrameType) -> Any:
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _one_sample(found: re.Match[str], where: str, given: str) -> str:
    return (
        f"{where} cannot train on a batch of one sample, which has no variance{given}: leave a last batch of one out"
        " (Data(drop_last=True)), or choose a batch_size that leaves none"
    )


def _width(found: re.Match[str], where: str, given: str) -> str:
    rows, width, takes, gives = found.groups()
    return (
        f"{where} takes {takes} features and got {width} (matrices of {rows} x {width} and {takes} x {gives}): change"
        " the layer's width, or the data's"
    )


def _channels(found: re.Match[str], where: str, given: str) -> str:
    return (
        f"{where} takes {found[1]} channels and got {found[2]}{given}: change its in_channels, or bring the images into"
        " the layout (samples, channels, height, width)"
    )


def _types(found: re.Match[str], where: str, given: str) -> str:
    return (
        f"{where} was given numbers of another type than its weights ({found[0]}){given}: convert the data (x.float()),"
        " or set trainer.precision, such as 64-true"
    )


def _label(found: re.Match[str], where: str, given: str) -> str:
    return (
        f"{where} was given the class {found[1]}, which the network has no output for{given}: classes count from 0, so"
        f" the last layer needs more than {found[1]} outputs, or the label is wrong"
    )


def _token(found: re.Match[str], where: str, given: str) -> str:
    return (
        f"{where} was given an index that it has no row for{given}: num_embeddings must be above the largest index, and"
        " no index below 0"
    )


def _target_type(found: re.Match[str], where: str, given: str) -> str:
    return (
        f"{where} was given a target of the wrong type ({found[0]}){given}: cross-entropy takes class indices"
        " (y.long()), or probabilities of classes; regression and binary losses take floats (y.float())"
    )


def _target_shape(found: re.Match[str], where: str, given: str) -> str:
    return (
        f"{where} was given a prediction and a target that do not fit{given}: {found[0]}; give both the same shape,"
        " such as y[:, None]"
    )


def _lazy(found: re.Match[str], where: str, given: str) -> str:
    return (
        "the network has lazy layers whose shapes are still unknown: call it once on a batch before Recipe(model=...),"
        " or write their sizes"
    )


def _dimensions(found: re.Match[str], where: str, given: str) -> str:
    return f"{where} was given a tensor of another number of dimensions than it takes: {found[0]}{given}"


def _class_places(found: re.Match[str], where: str, given: str) -> str:
    return (
        f"{where} was given a prediction and a target that do not fit{given}: {found[0]}; the classes of a prediction"
        " are its dimension 1, (samples, classes, ...), and the target has all of its others"
    )


def _ragged(found: re.Match[str], where: str, given: str) -> str:
    return (
        f"samples of unequal shapes, [{found[1]}] and [{found[2]}], do not make a batch: give Data(collate=...) that"
        " pads them"
    )


def _no_tensor(found: re.Match[str], where: str, given: str) -> str:
    advice = "name what the network takes by Data(input=key) or Data(input={parameter: key})"
    if where.startswith("the loss"):
        advice = "give the loss the prediction alone, and name the target by Data(target=key)"
    kind = "None" if found[1] == "NoneType" else f"a {found[1]}"
    return f"{where} was given {kind} in place of a tensor{given}: {advice}"


def _call(found: re.Match[str], where: str, given: str) -> str:
    return (
        f"{where} was not called with what its forward takes ({found[1]}){given}: give the network its inputs by"
        " Data(input={parameter: key}), or call the layer with all that it takes"
    )


_OF_SHAPES = (_width, _channels, _target_shape, _dimensions, _class_places, _ragged)
_MISTAKES: tuple[tuple[str, _Explain], ...] = (
    (r"Expected more than 1 (?:value|spatial element)", _one_sample),
    (r"mat1 and mat2 shapes cannot be multiplied \((\d+)x(\d+) and (\d+)x(\d+)\)", _width),
    (r"size mismatch, got input \((\d+)\), mat \(\d+x(\d+)\), vec \((\d+)()\)", _width),
    (r"to have (\d+) channels, but got (\d+) channels", _channels),
    (r"mat1 and mat2 must have the same dtype, but got \w+ and \w+", _types),
    (r"expected m1 and m2 to have the same dtype, but got: \w+ != \w+", _types),
    (r"Input type \([\w.]+\) and (?:bias|weight) type \([\w.]+\) should be the same", _types),
    (r"expected scalar type (?:Float|Double|Half|BFloat16) but found \w+", _types),
    (r"Target (-?\d+) is out of bounds", _label),
    (r"index out of range in self", _token),
    (r"expected scalar type Long but found \w+", _target_type),
    (r"expected target dtype to be Long or Byte, but got \w+", _target_type),
    (r"Expected floating point type for target with class probabilities, got \w+", _target_type),
    (r"result type \w+ can't be cast to the desired output type \w+", _target_type),
    (r"Found dtype Long but expected \w+", _target_type),
    (r"Target size \([^)]*\)\) must be the same as input size \([^)]*\)\)", _target_shape),
    (r"Expected input batch_size \(\d+\) to match target batch_size \(\d+\)", _target_shape),
    (r"Expected target size \[[^]]*\], got \[[^]]*\]", _class_places),
    (r"[Ee]xpected \dD .{0,60}(?:got input of size: \[[^]]*\]|\(got \dD input\))", _dimensions),
    (r"stack expects each tensor to be equal size, but got \[([^]]*)\] at entry \d+ and \[([^]]*)\]", _ragged),
    (r"argument '\w+' \(position \d+\) must be Tensor, not (\w+)", _no_tensor),
    (r"'(tuple|list|dict|NoneType|float|int|str)' object has no attribute '\w+'", _no_tensor),
    (r"forward\(\) ((?:missing|got an unexpected|takes) .*)", _call),
    (r"Attempted to use an uninitialized parameter", _lazy),
)
