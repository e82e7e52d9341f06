"""Networks whose parameters are shared out among processes: the strategy ``fsdp2``, and its sharded tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytorch_lightning.strategies import ModelParallelStrategy, StrategyRegistry

from framework.errors import UserError, some
from framework.ops.shards import is_sharded

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from framework.engine.core import Core


class FullySharded(ModelParallelStrategy):
    """Lightning's ``ModelParallelStrategy`` with all processes sharing the parameters out, by the name ``"fsdp2"``.

    Its checkpoints are single files that hold the whole network, as those of any other strategy: they can be evaluated
    by one process.

    Args:
        **options: further options of Lightning's class.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"tensor_parallel_size": 1, "save_distributed_checkpoint": False, **options})

    def setup_environment(self) -> None:
        """Take every process into the data-parallel group."""
        if self._data_parallel_size == "auto":
            self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


if "fsdp2" not in StrategyRegistry:
    StrategyRegistry.register("fsdp2", FullySharded, description="parameters shared out by torch's fully_shard")


def data_mesh(core: Core) -> DeviceMesh | None:
    """Return the processes among which the run's strategy shares parameters out, None where it does not.

    Raises:
        UserError: where something in the recipe would come out wrong, naming it and what to do instead.
    """
    trainer = core.trainer
    if not isinstance(trainer.strategy, ModelParallelStrategy):
        return None
    who = "strategy='fsdp2'" if isinstance(trainer.strategy, FullySharded) else "strategy=ModelParallelStrategy(...)"
    mesh: DeviceMesh = trainer.strategy.device_mesh
    if mesh["tensor_parallel"].size() > 1:
        raise UserError(
            f"{who}: tensor_parallel_size={mesh['tensor_parallel'].size()} would give ranks of one network different"
            " samples; use strategy='fsdp2', in which all ranks share the parameters out"
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise UserError(
            f"{who}: under precision={trainer.precision!r} each rank would look for overflow in its own part alone; use"
            " bf16-mixed or 32-true, or strategy='ddp'"
        )
    for plugin in core.plugins:
        if reason := plugin.limits().get("sharded"):
            raise UserError(f"{who}: {plugin.describe()} cannot be right there: {reason}; use strategy='ddp'")
    return mesh["data_parallel"]


def check_shards(core: Core) -> None:
    """Refuse weights that ranks would train each for itself.

    Raises:
        UserError: where the strategy shares parameters out and an override left some as they were.
    """
    if isinstance(core.trainer.strategy, ModelParallelStrategy):
        left = [name for name, p in core.model.named_parameters() if p.requires_grad and not is_sharded(p)]
        if left:
            raise UserError(
                f"{type(core).__name__}: {some(left)} left whole, so that ranks would train each its own; end shard by"
                " fully_shard of the whole network, and call super().configure_model() where that is overridden"
            )
