"""The strategy ``fsdp2``, which shards the network's parameters across ranks, and checks of recipes that use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn

from framework.errors import UserError, some
from framework.ops.shards import is_sharded
from framework.plugin.facts import Facts

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class FullySharded(ModelParallelStrategy):
    """The strategy ``"fsdp2"``: Lightning's ``ModelParallelStrategy`` with the parameters sharded across all ranks.

    Its checkpoints are single files with the whole network, as under other strategies, so one process can evaluate
    them.

    Args:
        **options: further options of Lightning's class.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"tensor_parallel_size": 1, "save_distributed_checkpoint": False, **options})

    def setup_environment(self) -> None:
        """Make the data-parallel group span all processes."""
        if self._data_parallel_size == "auto":
            self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


if "fsdp2" not in StrategyRegistry:
    StrategyRegistry.register("fsdp2", FullySharded, description="parameters sharded by torch's fully_shard")


def data_mesh(trainer: pl.Trainer, plugins: Sequence[Facts]) -> DeviceMesh | None:
    """Return the mesh of ranks across which the strategy shards parameters, or None if it does not.

    Args:
        trainer: the run's Trainer.
        plugins: the run's plugins.

    Raises:
        UserError: if the recipe would give a wrong result under sharding; the message says what to use instead.
    """
    if not isinstance(trainer.strategy, ModelParallelStrategy):
        return None
    who = "strategy='fsdp2'" if isinstance(trainer.strategy, FullySharded) else "strategy=ModelParallelStrategy(...)"
    mesh: DeviceMesh = trainer.strategy.device_mesh
    if mesh["tensor_parallel"].size() > 1:
        raise UserError(
            f"{who}: tensor_parallel_size={mesh['tensor_parallel'].size()} would feed ranks that share one network"
            " different samples; use strategy='fsdp2', which shards the parameters across all ranks"
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise UserError(
            f"{who}: under precision={trainer.precision!r} each rank would check only its own shards for overflow;"
            " use bf16-mixed or 32-true, or strategy='ddp'"
        )
    for plugin in plugins:
        if reason := plugin.limits().get("sharded"):
            raise UserError(f"{who}: {plugin.describe()} would give wrong results: {reason}; use strategy='ddp'")
    return mesh["data_parallel"]


def check_shards(trainer: pl.Trainer, model: nn.Module, who: str) -> None:
    """Check that no trainable parameter is left unsharded, which each rank would train separately.

    Args:
        trainer: the run's Trainer.
        model: the network.
        who: the class of the core, which the error names.

    Raises:
        UserError: if the strategy shards parameters and an override left some unsharded.
    """
    if isinstance(trainer.strategy, ModelParallelStrategy):
        left = [name for name, p in model.named_parameters() if p.requires_grad and not is_sharded(p)]
        if left:
            raise UserError(
                f"{who}: {some(left)} left unsharded, so each rank would train its own copy; end shard by fully_shard"
                " of the whole network, and call super().configure_model() if you override it"
            )
