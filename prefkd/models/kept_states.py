"""Hidden states of a teacher that scores keep, and the teacher's outer layers, which read them.

Terms that project hidden states ask a teacher for no more than that, so its other layers need not be in memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prefkd.data.batches import PairBatch, TokenBatch
from prefkd.data.packing import Movable
from prefkd.data.scores import HEAD
from prefkd.errors import PrefkdError
from prefkd.files import whole
from prefkd.models.frozen import FrozenModel
from prefkd.models.load import TeacherConfig, stored_dtype, text_config
from prefkd.models.logit_room import chunk_rows
from prefkd.models.logprob_model import TokenStates
from prefkd.ranks import Ranks


@dataclass(frozen=True)
class KeptHead(Movable):
    """The outer layers of a teacher whose states were kept.

    Attributes:
        head: (V, H) weight of the output layer.
        embedding: (V, H) table of the input embeddings; the same tensor where the two are tied.
        scale, cap: Scale and soft cap of the head's output.
    """

    head: Tensor
    embedding: Tensor
    scale: float
    cap: float | None

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return self.head.nbytes + (0 if self.embedding is self.head else self.embedding.nbytes)

    def states(self, batch: PairBatch, chunk_size: int | None = None) -> TokenStates:
        """What the teacher has to say of the targets of chosen answers.

        Nothing is known of rejected answers: their states are not numbers, so that no loss can be made of them.

        Args:
            chunk_size: Target tokens whose logits exist at one time; None = as many as the device has room for.
        """
        tokens, hidden = batch.teacher, batch.states
        assert hidden is not None, "a teacher that is asked for kept states attaches them"
        hidden = hidden.to(self.head.dtype)
        return TokenStates(
            inputs=tokens.input_ids.flatten()[tokens.predictors],
            targets=tokens.targets,
            parents=tokens.parents,
            hidden=F.pad(hidden, (0, 0, 0, len(tokens.targets) - len(hidden)), value=torch.nan),
            embedding=self.embedding,
            head=self.head,
            lengths=tokens.lengths,
            chunk_size=chunk_rows(chunk_size, len(self.head), self.head.device),
            scale=self.scale,
            cap=self.cap,
        )


def save_head(folder: Path, model: FrozenModel, config: TeacherConfig, probe: TokenBatch, ranks: Ranks) -> None:
    """Keep the outer layers of a model next to scores; all ranks call it, the main one writes.

    Args:
        probe: A pair of the model's tokens, since a model that is split is whole only where it reads.
    """
    states = model.states(probe)
    if ranks.is_main:
        dtype, tied = _kept_dtype(config), torch.equal(states.head, states.embedding.to(states.head.dtype))
        tensors = {"head": states.head} if tied else {"head": states.head, "embedding": states.embedding}
        about = {"scale": repr(states.scale)} | ({} if states.cap is None else {"cap": repr(states.cap)})
        with whole(folder / HEAD) as unfinished:
            kept = {name: value.detach().to("cpu", dtype).contiguous() for name, value in tensors.items()}
            save_file(kept, unfinished, metadata=about)
    ranks.wait()


def load_head(folder: Path, *, device: torch.device, dtype: torch.dtype | None = None) -> KeptHead:
    """The outer layers that were kept next to scores; on the meta device without values.

    Args:
        dtype: Type in which they read; as they are stored if not given.

    Raises:
        PrefkdError: They are missing or damaged.
    """
    with _opened(folder) as stored:
        names = [*stored.keys()]
        if device.type == "meta":
            made = {name: torch.empty(stored.get_slice(name).get_shape(), device=device) for name in names}
        else:
            made = {name: stored.get_tensor(name) for name in names}
        tensors = {name: value.to(device, dtype) for name, value in made.items()}
        about, head = stored.metadata() or {}, tensors["head"]
    cap = float(about["cap"]) if "cap" in about else None
    return KeptHead(head, tensors.get("embedding", head), float(about.get("scale", 1.0)), cap)


def kept_hidden_size(folder: Path) -> int:
    """H of the states that were kept.

    Raises:
        PrefkdError: The outer layers next to them are missing or damaged.
    """
    with _opened(folder) as stored:
        return stored.get_slice("head").get_shape()[1]


def head_bytes(config: TeacherConfig) -> int:
    """Bytes of the outer layers of a model, as they are kept."""
    text = text_config(config)
    layers = 1 if getattr(text, "tie_word_embeddings", False) else 2
    return layers * text.vocab_size * text.hidden_size * _kept_dtype(config).itemsize


def state_bytes(config: TeacherConfig) -> int:
    """Bytes that are kept of a hidden state of a model."""
    return text_config(config).hidden_size * torch.bfloat16.itemsize


def _kept_dtype(config: TeacherConfig) -> torch.dtype:
    """The smaller of the types in which a model is stored and in which it computes; it has no more to lose."""
    return min(config.torch_dtype, stored_dtype(config), key=lambda dtype: dtype.itemsize)


@contextmanager
def _opened(folder: Path) -> Iterator[Any]:
    if not (folder / HEAD).is_file():
        raise PrefkdError(f"{folder / HEAD} is missing; run score with keep.states: true")
    try:
        with safe_open(folder / HEAD, framework="pt") as stored:
            yield stored
    except (SafetensorError, OSError) as error:
        raise PrefkdError(f"{folder / HEAD} is damaged; remove it and run score again, which writes it") from error
