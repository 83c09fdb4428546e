"""Write a trained model as an ordinary Hugging Face folder, or an adapter as one of peft, whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefkd.models.lora import PREFIX, WEIGHTS
from prefkd.ranks import Ranks


def save_pretrained(
    lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, dtype: torch.dtype, ranks: Ranks
) -> None:
    """Save model, tokenizer, chat template and generation config to `folder`; all ranks call it, the main one writes.

    Args:
        dtype: Type of the saved weights.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(lm, options=options)
    if ranks.is_main:
        if lm.config.get_text_config().tie_word_embeddings:
            state.pop("lm_head.weight", None)
        state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
        with _whole(folder) as unfinished:
            lm.save_pretrained(unfinished, state_dict=state)
            lm.config.dtype = dtype  # transformers has written the type of the weights in memory
            lm.config.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
    ranks.wait()


def save_adapter(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, ranks: Ranks) -> None:
    """Save the adapter that was trained on a model, and the tokenizer, to `folder` in peft's format.

    All ranks call it, the main one writes. The weights stay float32; those of the base are not gathered.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    state: dict[str, Any] = get_model_state_dict(lm, options=options)
    if ranks.is_main:
        # Left to itself, peft asks the Hub for the base's vocabulary.
        state = get_peft_model_state_dict(lm, state_dict=state, save_embedding_layers=False)  # pyright: ignore
        with _whole(folder) as unfinished:
            (config,) = lm.peft_config.values()  # pyright: ignore
            config.save_pretrained(str(unfinished))
            weights = {f"{PREFIX}{name}": value.contiguous() for name, value in state.items()}
            save_file(weights, unfinished / WEIGHTS, metadata={"format": "pt"})
            tokenizer.save_pretrained(unfinished)
    ranks.wait()


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to write to, which gets its name when all is written, in place of one that has it.

    So a full disk or a kill leaves no half checkpoint behind that looks like a whole one.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was ended between its export and its end
    unfinished.rename(folder)
