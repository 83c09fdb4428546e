"""Write a trained model as an ordinary Hugging Face folder, whole or not at all."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefkd.training.distributed import Ranks


def save_pretrained(
    lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, dtype: torch.dtype, ranks: Ranks
) -> None:
    """Save model, tokenizer, chat template and generation config to `folder`; all ranks call it, the main one writes.

    The files are written under a temporary name first, so that a full disk or a kill leaves no half checkpoint behind
    that looks like a whole one.

    Args:
        dtype: Type of the saved weights.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(lm, options=options)
    if ranks.is_main:
        if lm.config.get_text_config().tie_word_embeddings:
            state.pop("lm_head.weight", None)
        state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        lm.config.dtype = dtype
        lm.save_pretrained(unfinished, state_dict=state)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(folder)
    ranks.wait()
