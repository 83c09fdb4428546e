"""Write a trained model as an ordinary Hugging Face folder, or an adapter as one of peft, whole or not at all."""

import copy
import hashlib
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefkd.data.sides import ModelSide
from prefkd.data.templates import PlainTemplate
from prefkd.files import whole
from prefkd.method.rounding import round_stochastically
from prefkd.models.load import ModelConfig, stored_dtype
from prefkd.models.lora import PREFIX, WEIGHTS
from prefkd.ranks import Ranks
from prefkd.training.settings import Export, TrainingConfig


def save_trained(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    start: ModelConfig,
    training: TrainingConfig,
    ranks: Ranks,
) -> None:
    """Save what has learned to `folder`: the adapter if there is one in the model, else all of the model.

    With it come its tokenizer, chat template and generation config. All ranks call it, the main one writes. The weights
    of an adapter stay float32, in peft's format; those of its base are not gathered.

    Args:
        start: The checkpoint that training began with.
        training: Says in which type the weights are saved (`export`), and seeds their rounding.
    """
    has_adapter = bool(getattr(lm, "peft_config", None))
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=has_adapter)
    state: dict[str, Any] = get_model_state_dict(lm, options=options)
    if ranks.is_main:
        side = ModelSide(tokenizer, start.template)
        with whole(folder) as unfinished:
            _stop_at(side, lm)
            if has_adapter:
                _write_adapter(lm, state, unfinished)
            else:
                _write_model(lm, state, unfinished, start=start, training=training)
            _save_tokenizer(side, unfinished)
    ranks.wait()


def _write_model(
    lm: PreTrainedModel, state: dict[str, Any], folder: Path, *, start: ModelConfig, training: TrainingConfig
) -> None:
    for name in lm.all_tied_weights_keys:  # each stands under the name of the weight that it is tied to, too
        state.pop(name, None)
    export, stored = training.export, stored_dtype(start)
    for name, value in state.items():  # one by one, so that two copies of all weights never exist
        state[name] = exported(name, value, export=export, stored=stored, seed=training.seed)
    lm.save_pretrained(folder, state_dict=state)
    lm.config.dtype = export_dtype(export, stored)  # transformers has written the type of the weights in memory
    lm.config.save_pretrained(folder)


def _write_adapter(lm: PreTrainedModel, state: dict[str, Any], folder: Path) -> None:
    # Left to itself, peft asks the Hub for the base's vocabulary.
    state = get_peft_model_state_dict(lm, state_dict=state, save_embedding_layers=False)  # pyright: ignore
    (config,) = lm.peft_config.values()  # pyright: ignore
    config.save_pretrained(str(folder))
    lm.generation_config.save_pretrained(folder)  # pyright: ignore
    weights = {f"{PREFIX}{name}": value.contiguous() for name, value in state.items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def export_dtype(export: Export, stored: torch.dtype) -> torch.dtype:
    """The type of saved weights, given the type of the checkpoint that training began with.

    By default a half-precision checkpoint becomes bfloat16, float16 ones too: rounded to nearest, their three further
    bits would still lose small steps, and as float32 their reader would round them so.
    """
    if export == "auto":
        return torch.bfloat16 if stored in (torch.bfloat16, torch.float16) else torch.float32
    return stored if export == "checkpoint" else getattr(torch, export)


def exported(name: str, value: Tensor, *, export: Export, stored: torch.dtype, seed: int) -> Tensor:
    """A weight as it is saved: what a run writes depends on its seed and the weight's name, on nothing else.

    Args:
        stored: Type of the checkpoint that training began with.
    """
    dtype = export_dtype(export, stored)
    if not value.is_floating_point():
        return value
    if dtype != torch.bfloat16 or export == "checkpoint":
        return value.to(dtype)
    own_seed = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return round_stochastically(value, seed=int.from_bytes(own_seed[:7], "big"))


def _stop_at(side: ModelSide, lm: PreTrainedModel) -> None:
    """Let generation stop at the end that was trained, and at the ends that the checkpoint knew.

    An end that is mere text becomes one of `stop_strings`; `generate` asks for `tokenizer=...` to find it.
    """
    configs: list[Any] = [lm.generation_config, lm.config]
    for config in configs:
        own = config.eos_token_id
        known = [own] if isinstance(own, int) else list(own or ())
        ends = known if side.eos_id in known else [*known, side.eos_id]
        config.eos_token_id = ends[0] if len(ends) == 1 else ends
    if side.stop_text:
        own = configs[0].stop_strings
        known = [own] if isinstance(own, str) else list(own or ())
        configs[0].stop_strings = known if side.stop_text in known else [*known, side.stop_text]


def _save_tokenizer(side: ModelSide, folder: Path) -> None:
    """Save the tokenizer with the template that was trained on."""
    tokenizer = copy.deepcopy(side.tokenizer)
    if not side.uses_chat_template:
        # A tokenizer may name a BOS that it puts before no text, and that was not trained on.
        tokenizer.chat_template = PlainTemplate.jinja if side.bos_id is None else PlainTemplate.jinja_with_bos
    tokenizer.save_pretrained(folder)
