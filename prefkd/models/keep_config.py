"""What scores are to keep of a teacher besides log-probs."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from prefkd.data.kept_rows import kept_bytes, kept_columns, state_columns
from prefkd.data.rows import ANSWERS, KEPT
from prefkd.errors import PrefkdError
from prefkd.method.preference_distillation import state_values
from prefkd.method.top_rows import TopRows, rows_of
from prefkd.models.kept_states import head_bytes, state_bytes
from prefkd.models.load import TeacherConfig, embedding_count
from prefkd.models.logprob_model import TokenStates


@dataclass
class KeepConfig:
    """What is kept besides log-probs, for terms that need more from a teacher but should work without it in memory.

    Attributes:
        top_k: The most probable tokens of each target; 0 = none, where states are kept.
        target: The target is always among them, in the place of the least probable one if need be.
        value: Also what the states after each target are worth, a number for each answer (TVKD).
        temperature: Temperature of the values, and besides 1 the one at which the mass of all other tokens is known.
        models: Models whose distributions are kept: the teacher, and with a contrast pi+ and pi-. The tokens of pi+ are
            kept of pi- too, so that both can be compared.
        states: Also the teacher's hidden states at the targets of chosen answers, in bfloat16, and its output layer and
            embeddings, which read them. Every term that is about chosen answers can work from them.
    """

    top_k: int = 64
    target: bool = True
    value: bool = True
    temperature: float = 2.0
    models: list[Literal["teacher", "positive", "negative"]] = field(default_factory=lambda: ["teacher"])
    states: bool = False

    def problems(self) -> Any:
        if self.top_k < 0 or not (self.top_k or self.states):
            yield f"top_k: {self.top_k} keeps nothing; use 64, or remove keep"
        if not 0 < self.temperature < math.inf:
            yield f"temperature: {self.temperature} is not a temperature; use a positive number"
        if not self.models:
            yield "models: none is named; name teacher, or remove keep"
        if "negative" in self.models and "positive" not in self.models:
            yield "models: negative is kept on the tokens of positive; name both"

    def fingerprint(self, tokens: int | None) -> dict[str, str | float | int | bool | None]:
        """What the kept columns depend on; `tokens` is the size of the vocabulary."""
        return {
            "keep.top_k": self.top_k,
            "keep.target": self.target,
            "keep.value": self.value,
            "keep.temperature": self.temperature,
            "keep.models": " ".join(name for name in KEPT if name in self.models),
            "keep.tokens": tokens,
            "keep.states": self.states,
        }

    @property
    def distributions(self) -> list[str]:
        """The models whose distributions are kept."""
        return [name for name in KEPT if name in self.models] if self.top_k else []

    @property
    def asked(self) -> tuple[str, ...]:
        """The models whose states are asked for while they score."""
        return tuple(name for name in KEPT if name in self.distributions or (self.states and name == "teacher"))

    def size(self, teacher: TeacherConfig, tokens: float, chosen: float) -> float:
        """What all of it takes on disk; neither log-probs nor states compress much.

        Args:
            tokens: Target tokens of the teacher.
            chosen: Target tokens of chosen answers.
        """
        rows = kept_bytes(self.top_k, embedding_count(teacher) or 2**17, self.distributions)
        return tokens * rows + (chosen * state_bytes(teacher) + head_bytes(teacher) if self.states else 0)

    def describe(self, teacher: TeacherConfig, folder: Path, tokens: int, chosen: int, left: float) -> str:
        """What is going to be kept, in a line.

        Args:
            folder: Where it will be.
            tokens, chosen: As in `size`.
            left: The share that is not there yet.

        Raises:
            PrefkdError: The disk lacks the room for that.
        """
        size, there = self.size(teacher, tokens, chosen), (folder, *folder.parents)
        free = shutil.disk_usage(next(path for path in there if path.exists())).free
        if size * left > free:
            raise PrefkdError(
                f"keep: {size * left / 1e9:,.2f} GB would be written, but the disk of {folder} has only "
                f"{free / 1e9:,.2f} GB left; free some, or keep less"
            )
        parts = [f"{self.top_k} tokens of {' and '.join(self.distributions)}"] if self.distributions else []
        if self.states:
            states = f"hidden states, {state_bytes(teacher):,} bytes for each token of a chosen answer"
            parts.append(f"{states}, and the outer layers that read them, {head_bytes(teacher) / 1e6:,.1f} MB")
        return f"{'; '.join(parts)}; together about {size / 1e6:,.1f} MB"

    def require(self, tokens: int) -> None:
        """Make sure that a vocabulary has so many tokens.

        Raises:
            PrefkdError: It has fewer.
        """
        if self.top_k > tokens:
            raise PrefkdError(f"keep.top_k: {self.top_k} is more than the {tokens} tokens of the teacher; use 64")

    def columns(self, states: Mapping[str, TokenStates], tokens: int | None, pairs: int) -> list[dict[str, Any]]:
        """What is kept of each pair of a microbatch, from the states of the models that are named.

        Args:
            pairs: Their number; each has two answers, or all have one.
            tokens: Size of the vocabulary; a head may have more rows.
        """
        answers = {name: states[name].answers() for name in self.distributions}
        found: list[dict[str, Any]] = [{} for _ in range(pairs)]
        if self.states:
            chosen = states["teacher"].answers()[:pairs]
            found = [state_columns(answer.hidden) for answer in chosen]
        for index in range(len(next(iter(answers.values()), ()))):
            side, pair = divmod(index, pairs)
            ids: Tensor | None = None
            for name in KEPT:
                if name in answers:
                    rows, value = self._of_answer(answers[name][index], ids if name == "negative" else None, tokens)
                    ids = rows.ids
                    found[pair] |= kept_columns(name, ANSWERS[side], rows, value)
        return found

    @torch.no_grad()
    def _of_answer(self, states: TokenStates, ids: Tensor | None, tokens: int | None) -> tuple[TopRows, float | None]:
        parts, value = [], 0.0
        for start in range(0, len(states.targets), states.chunk_size):
            end = start + states.chunk_size
            part = states.part(start, end)
            logprobs = part.logits()[:, :tokens].log_softmax(-1)
            own = logprobs.topk(self.top_k).indices if ids is None else ids[start:end]
            if self.target and ids is None:
                missing = (own != part.targets[:, None]).all(-1)
                own[missing, -1] = part.targets[missing]
            parts.append(rows_of(logprobs, own, self.temperature))
            worth = state_values(logprobs, temperature=self.temperature)
            value += worth[1 if start == 0 else 0 :].sum().item()
        merged = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("ids", "logprobs", "rest", "cooled_rest")
        }
        return replace(parts[0], **merged), value if self.value else None
