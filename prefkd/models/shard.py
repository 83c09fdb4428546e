"""Sharding over processes with FSDP2."""

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from prefkd.models.load import decoder_layers
from prefkd.models.logprob_model import LogprobModel
from prefkd.training.distributed import Ranks


def shard(model: LogprobModel, ranks: Ranks) -> LogprobModel:
    """Split the weights of a model over the ranks, in place; with one rank nothing happens.

    Each decoder layer is a group of its own. Embeddings, final norm and head stay in the group of the root, because a
    tied head must be gathered together with its embedding (and `LogprobModel.forward` uses it directly).
    """
    if ranks.world_size > 1:
        mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
        for layer in decoder_layers(model.lm):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model
