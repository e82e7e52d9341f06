"""Data sets, loaders in keyed order, worker processes, and access to the parts of a batch."""

from framework.data.batch import input_of, map_rest, replace, rest_of, size_of, target_of, weight_of
from framework.data.data import Data
from framework.data.evaluation import EvalLoader
from framework.data.loaders import TrainLoader, Window
from framework.data.mixed import MixedTarget, clean_target, loss_of
from framework.data.outcome import Outcome
from framework.data.parts import as_dataset, length_of
from framework.data.trees import entry, has_entry, items_of, leaves_of, map_leaves

__all__ = [
    "Data",
    "EvalLoader",
    "MixedTarget",
    "Outcome",
    "TrainLoader",
    "Window",
    "as_dataset",
    "clean_target",
    "entry",
    "has_entry",
    "input_of",
    "items_of",
    "leaves_of",
    "length_of",
    "loss_of",
    "map_leaves",
    "map_rest",
    "replace",
    "rest_of",
    "size_of",
    "target_of",
    "weight_of",
]
