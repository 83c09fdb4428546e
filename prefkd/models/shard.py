"""Sharding over processes with FSDP2, without a process that ever holds more of the weights than it must."""

from collections.abc import Callable
from functools import cache, partial
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torchao.dtypes.nf4tensor import NF4Tensor

from prefkd.errors import PrefkdError
from prefkd.models.load import decoder_layers
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.quantize import is_quantized
from prefkd.ranks import Ranks


def shard(
    model: LogprobModel,
    ranks: Ranks,
    *,
    over: Literal["all", "node"] = "all",
    cpu_offload: bool = False,
    sync_once: bool = False,
    prepare: Callable[[nn.Module], None] | None = None,
) -> None:
    """Split the weights of a model over the ranks, in place; without torchrun, and for a plan, nothing happens.

    Each decoder layer is a group of its own. Embeddings, final norm and head stay in the group of the root, because a
    tied head must be gathered together with its embedding (and `LogprobModel.forward` uses it directly). So do
    projectors, which are called once for each answer: ranks with unequally many answers would gather a group of theirs
    unequally often, and wait for each other for ever. A model whose weights are wider than its precision computes with
    weights that are cast once, when they are gathered; gradients are summed in float32.

    Args:
        model: Put together on `ranks.assembly_device`: the main rank has read its weights into main memory. Group by
            group they are sent to the others and split, so that these never hold more than their part and one group.
        over: With `node`, every node has all of the model, split over its own ranks: more memory, and only gradients
            travel between nodes.
        cpu_offload: The parts, their gradients and optimizer states wait in main memory.
        sync_once: Each rank keeps all weights, as they were gathered, and the whole gradient until the step is over.
        prepare: Called with each decoder layer before it is split. Weights that it quantizes in a way that cannot be
            split, and that are constant therefore, stay whole on each rank.

    Raises:
        PrefkdError: Weights are to be offloaded in a process that torchrun has not started.
    """
    if not dist.is_initialized():
        if cpu_offload and ranks.device.type != "meta":
            raise PrefkdError("cpu_offload is done by FSDP: run with --nproc-per-node, 1 for one GPU")
        return
    shards = ranks.node_size if over == "node" else ranks.world_size
    mesh = _mesh(ranks.device.type, ranks.world_size, shards, dist.group.WORLD)
    policy = CPUOffloadPolicy(pin_memory=ranks.device.type == "cuda") if cpu_offload else OffloadPolicy()
    mixed = MixedPrecisionPolicy(
        # Inputs are what the weights of the embedding are. Cast by FSDP, they could not be float32 for `check`.
        param_dtype=model.precision,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    model.autocasts = model.precision == torch.float32
    for group in (*decoder_layers(model.lm), model):
        _hand_out(group, ranks)
        if prepare is not None and group is not model:
            prepare(group)
        # FSDP cannot split int8, and gathers no nf4 that is in one part.
        whole = {
            value
            for value in group.parameters()
            if is_quantized(value) and not (isinstance(value, NF4Tensor) and shards > 1)
        }
        fully_shard(group, mesh=mesh, mp_policy=mixed, offload_policy=policy, ignored_params=whole)
    model.sync_once = sync_once
    model.sums_on_rank = sync_once or (ranks.world_size > 1 and not cpu_offload and _sums_for_nothing(model, shards))


def _sums_for_nothing(model: LogprobModel, shards: int) -> bool:
    """Whether the whole gradient of a step takes no more memory on a rank than its part: it is all of it anyway, or
    that of adapters."""
    learning = [value for value in model.parameters() if value.requires_grad]
    has_adapters = any(not value.requires_grad for value in model.lm.parameters())
    return all(value.dtype == torch.float32 for value in learning) and (shards == 1 or has_adapters)


def before_microbatch(model: LogprobModel, *, is_last: bool) -> None:
    """Let ranks wait with what they exchange after a backward pass until the last microbatch of the step.

    Where a rank can sum the gradients of its microbatches itself, all ranks meet once a step to sum theirs; elsewhere
    nodes alone wait with each other, since each has all of the model. All ranks run equally many microbatches
    (`prefkd.data.steps.split_step`), so that all of them meet after the last one.
    """
    if not isinstance(model, FSDPModule):
        return
    if model.sums_on_rank:
        model.set_requires_gradient_sync(is_last)
    else:
        model.set_requires_all_reduce(is_last)
    if model.sync_once:
        model.set_reshard_after_forward(False)
        model.set_reshard_after_backward(is_last)


def after_microbatches(model: LogprobModel) -> None:
    """After the last microbatch of a step: what reads the model until the next one gathers layer by layer again."""
    if isinstance(model, FSDPModule) and model.sync_once:
        model.set_reshard_after_forward(True)
        model.set_reshard_after_forward(False, recurse=False)  # the root's, as FSDP2 has it


@cache
def _mesh(device_type: str, world_size: int, shards: int, _connections: dist.ProcessGroup | None) -> DeviceMesh:
    """One mesh for all models of a run; a process may join its ranks again for another run."""
    if shards == world_size:
        return init_device_mesh(device_type, (world_size,))
    return init_device_mesh(device_type, (world_size // shards, shards), mesh_dim_names=("replicate", "shard"))


def _hand_out(group: nn.Module, ranks: Ranks) -> None:
    """Give all ranks what the main rank has of a module; what is sharded already is left as it is.

    Buffers are sent too, since those that are not stored, of rotary embeddings for instance, are not in an outline.
    """
    places = [
        (module, name, value)
        for module in group.modules()
        for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        if not isinstance(value, DTensor) and not is_quantized(value)
    ]
    # Some architectures keep a few weights in another type than that of the model.
    dtypes = ranks.gather([value.dtype for _, _, value in places])[0]
    sent: dict[int, Tensor] = {}  # a tied weight stands in two places
    for (module, name, value), dtype in zip(places, dtypes, strict=True):
        if id(value) not in sent:
            empty = partial(torch.empty, value.shape, dtype=dtype, device=ranks.device)
            here = value.detach().to(ranks.device).contiguous() if ranks.is_main else empty()
            ranks.broadcast(here)
            is_parameter = isinstance(value, nn.Parameter)
            sent[id(value)] = nn.Parameter(here, requires_grad=value.requires_grad) if is_parameter else here
        setattr(module, name, sent[id(value)])
