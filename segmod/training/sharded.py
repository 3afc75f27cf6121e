"""Nets that do not fit: each process holds a part of the weights, their gradients and the optimiser's state (FSDP2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, OptimStateKeyType, fully_shard

from segmod.ground.types import Count


class Sharded(ModelParallelStrategy):
    """Divides a net among all processes; the rest is as with DDP, to rounding, and checkpoints are whole ones.

    A large layer is gathered when it computes, and let go; small ones are gathered together. In validation every
    process holds the whole net, for each scores another number of images and cannot wait for the others: a net must
    fit without gradients and state.

    Args:
        layer: Weights that make a layer a large one.
    """

    def __init__(self, layer: Count = 1_000_000) -> None:
        super().__init__(save_distributed_checkpoint=False)
        self.layer = layer
        self._net: nn.Module | None = None

    def shard(self, net: nn.Module) -> None:
        """Divide a net, once."""
        self._net = net
        if isinstance(net, FSDPModule):
            return
        net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # no other can be divided
        mesh = dist.device_mesh.init_device_mesh(self.root_device.type, (self.world_size,))
        for module in net.modules():
            if sum(weight.numel() for weight in module.parameters(recurse=False)) >= self.layer:
                fully_shard(module, mesh=mesh)
        if not isinstance(net, FSDPModule):
            fully_shard(net, mesh=mesh)
        net.register_forward_pre_hook(lambda *_: self._share_buffers() if net.training else None)

    def _share_buffers(self) -> None:
        """Take the statistics of batch norm from rank 0, as DDP does."""
        assert self._net is not None
        for buffer in self._net.buffers():
            dist.broadcast(buffer, 0)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Go on from the checkpoint of any run; Lightning would mix up weights that lie in channels-last order.

        Raises:
            UserError: The file is damaged.
        """
        assert self.model is not None
        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path)
        whole = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.model, _in_order(checkpoint["state_dict"]), options=whole)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
            named = FullyShardedDataParallel.rekey_optim_state_dict(state, OptimStateKeyType.PARAM_NAME, self.model)
            set_optimizer_state_dict(self.model, optimizer, _in_order(named), options=whole)
            for group in optimizer.param_groups:
                group.update({"fused": None} if "fused" in group else {})  # nor can torch divide all of the fused
        return checkpoint

    def on_validation_start(self) -> None:
        """Gather the net, as rank 0 would write it into a checkpoint."""
        self._share_buffers()
        self._hold(True)

    def on_validation_end(self) -> None:
        """Divide it again."""
        self._hold(False)

    def _hold(self, whole: bool) -> None:
        assert self._net is not None
        for module in self._net.modules():
            if isinstance(module, FSDPModule):
                module.set_reshard_after_forward(not whole, recurse=False)
                if whole:
                    module.unshard()
                else:
                    module.reshard()


def _in_order(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _in_order(value) for key, value in state.items()}
    return state.contiguous() if isinstance(state, Tensor) else state
