"""What is reported is what was written: the held-out metrics of the saved folder, read back from the disk."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from prefkd.models.load import ModelConfig, load_causal_lm, stored_dtype
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.lora import PREFIX, WEIGHTS
from prefkd.ranks import Ranks, together
from prefkd.training.display import Display
from prefkd.training.metrics import HeldOut, Outcome, extend_last

# A folder that loses less of the change of the held-out loss than this is as good as the weights in memory.
TOLERATED = 0.05
# A mean of differences is beyond noise if it is farther from zero than so many of its standard errors.
STANDARD_ERRORS = 2.0


def measure_written(
    folder: Path,
    before: Mapping[str, float],
    after: Mapping[str, float],
    evaluate: Callable[[], HeldOut],
    *,
    model: LogprobModel,
    ranks: Ranks,
    display: Display,
) -> Outcome:
    """Read a saved folder back into the model, evaluate it, and say if it is not as good as what was trained.

    The metrics also go to the last line of metrics.jsonl next to the folder, as `written/loss` and so on. All ranks
    call it; the main one reads.

    Args:
        folder: The saved model or adapter.
        before, after: Held-out metrics before and after training, with the weights in memory.
        evaluate: Evaluates the model on the held-out pairs, in `training.precision`.
        model: The model that was trained. When this returns, its weights are those of the folder.

    Raises:
        PrefkdError: The folder cannot be loaded.
    """
    if not after:
        return Outcome(before, after, after)
    # A run that was resumed after its last step has no losses of single pairs.
    trained = after if isinstance(after, HeldOut) and after.losses is not None else evaluate()
    if isinstance(model, FSDPModule):
        model.reshard()  # a forward pass alone leaves the weights of the root whole, and parts are loaded
    load_written(model.lm, folder, ranks)
    written = evaluate()
    outcome = Outcome(before, after, written)
    if ranks.is_main:
        values = {name.replace("held_out/", "written/"): value for name, value in written.items()}
        extend_last(folder.parent / "metrics.jsonl", values)
    loss, start, memory = (metrics["held_out/loss"] for metrics in (written, before, after))
    differs = abs(loss - memory) > TOLERATED * abs(memory - start)
    if trained.losses is not None and written.losses is not None:
        differs = is_beyond_noise(written.losses - trained.losses, ranks) and differs
    if differs:
        display.say(
            f"the saved folder is not the model that was trained: its held-out loss is {loss:.4f}, in memory it is "
            f"{memory:.4f}, before training it was {start:.4f}; training.export=float32 saves all that was learned"
        )
    return outcome


def load_written(lm: PreTrainedModel, folder: Path, ranks: Ranks) -> None:
    """Give a model, sharded or not, the weights of a saved folder, loaded as a user loads it.

    Args:
        folder: A model of the same architecture, or the adapter that is in `lm`.
    """
    is_adapter = (folder / WEIGHTS).is_file()
    state: dict[str, Any] = {}

    def read() -> None:
        if not ranks.is_main:
            return  # it gets its part from the main one
        if is_adapter:
            saved = load_file(folder / WEIGHTS)
            names = [name for name, parameter in lm.named_parameters() if parameter.requires_grad]
            places = {PREFIX + name.replace(".default.", "."): str(place) for place, name in enumerate(names)}
            state.update({place: saved[name] for name, place in places.items()})
        else:
            config = ModelConfig(str(folder), trust_remote_code=lm.is_remote_code())
            state.update(load_causal_lm(config, dtype=stored_dtype(config), device=torch.device("cpu")).state_dict())

    together(ranks, read)
    # The adapter alone, not its base: torch wants all that it loads into on one device, and a quantized base stays on
    # its GPU though adapters are offloaded.
    adapter = nn.ParameterList(parameter for parameter in lm.parameters() if parameter.requires_grad)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=dist.is_initialized())
    set_model_state_dict(adapter if is_adapter else lm, state, options=options)


def is_beyond_noise(differences: Tensor, ranks: Ranks) -> bool:
    """Whether the mean of paired differences is farther from zero than two standard errors; of one pair nobody knows.

    Args:
        differences: (N,) those of this rank.
    """
    sums = torch.stack([differences.sum(), differences.square().sum(), differences.new_tensor(len(differences))])
    total, squares, count = ranks.sum(sums).tolist()
    mean = total / count
    variance = max(squares / count - mean**2, 0.0)
    return count > 1 and abs(mean) > STANDARD_ERRORS * (variance / (count - 1)) ** 0.5
