"""What scores keep of next-token distributions besides log-probs of parents, as columns of a data set.

For each of the models teacher, positive (pi+) and negative (pi-), and each target of the teacher's tokenizer, it is the
log-probs of the k most probable tokens and of all others together. The tokens of pi- are those of pi+, so that both can
be compared. A row of a data set has for each answer

    {answer}_{model}_ids          the ids in as few bits as they need; none for pi-
    {answer}_{model}_top          float16 log-probs of these tokens, (n, k)
    {answer}_{model}_rests        float16 log of the mass of all others, (n, 2), at temperature 1 and at the kept one
    {answer}_{model}_value        float32, what the states after each target but the last are worth (TVKD)

and, the same in all rows, kept_temperature and kept_tokens, the size of the vocabulary. Of hidden states it is

    chosen_teacher_states         bfloat16 (n, H), the states that predict the targets of the chosen answer
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefkd.data.packing import Movable
from prefkd.data.rows import ANSWERS, STATES, kept_column, token_column
from prefkd.method.top_rows import TopRows, id_bits, pack_ids, unpack_ids

TEMPERATURE, TOKENS = "kept_temperature", "kept_tokens"
LEAST_HALF = -65504.0  # what float16 has for -inf


@dataclass(frozen=True)
class KeptRows(Movable):
    """What was kept of a model, of the N targets of a microbatch.

    Attributes:
        rows: The most probable tokens of each target.
        values: (A,) what the states of each answer are worth, or None.
    """

    rows: TopRows
    values: Tensor | None


def kept_columns(model: str, answer: str, rows: TopRows, value: float | None) -> dict[str, Any]:
    """The columns of an answer."""
    rests = torch.stack([rows.rest, rows.cooled_rest], -1)
    found: dict[str, Any] = {"top": _halves(rows.logprobs), "rests": _halves(rests)}
    if model != "negative":
        found["ids"] = pack_ids(rows.ids.cpu().numpy(), rows.tokens)
    if value is not None:
        found["value"] = np.array([value], dtype=np.float32)
    return {kept_column(answer, model, name): part for name, part in found.items()}


def kept_rows(rows: Sequence[Mapping[str, Any]], model: str) -> KeptRows:
    """What was kept of a model of the pairs of a microbatch."""
    tokens, ids, tops, rests, values = rows[0][TOKENS], [], [], [], []
    for answer in ANSWERS:
        for row in rows:
            targets = len(row[token_column("teacher", answer)])
            if not targets:
                continue  # a rival that is not there
            top = np.frombuffer(row[kept_column(answer, model, "top")], dtype=np.float16).reshape(targets, -1)
            packed = row[kept_column(answer, "positive" if model == "negative" else model, "ids")]
            ids.append(unpack_ids(packed, top.shape[1], tokens))
            tops.append(top)
            rests.append(np.frombuffer(row[kept_column(answer, model, "rests")], np.float16).reshape(targets, 2))
            values += row.get(kept_column(answer, model, "value")) or []
    logprobs, masses = (_wide(np.concatenate(parts)) for parts in (tops, rests))
    top_rows = TopRows(
        ids=torch.from_numpy(np.concatenate(ids)),
        logprobs=logprobs,
        rest=masses[:, 0],
        cooled_rest=masses[:, 1],
        temperature=rows[0][TEMPERATURE],
        tokens=tokens,
    )
    return KeptRows(top_rows, torch.tensor(values) if values else None)


def state_columns(hidden: Tensor) -> dict[str, bytes]:
    """The column of the (n, H) states of a chosen answer."""
    return {STATES: hidden.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()}


def kept_states(rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """(N, H) bfloat16, the states of the chosen answers of a microbatch."""
    found = []
    for row in rows:
        stored = np.frombuffer(row[STATES], dtype=np.int16)
        found.append(stored.reshape(len(row[token_column("teacher", ANSWERS[0])]), -1))
    return torch.from_numpy(np.concatenate(found)).view(torch.bfloat16)


def kept_bytes(k: int, tokens: int, models: Sequence[str]) -> int:
    """Bytes that are kept of a target of the teacher, before compression."""
    ids = -(-k * id_bits(tokens) // 8)
    return sum(2 * k + 4 + (ids if name != "negative" else 0) for name in models)


def _halves(values: Tensor) -> bytes:
    return values.float().clamp_min(LEAST_HALF).cpu().numpy().astype(np.float16).tobytes()


def _wide(halves: np.ndarray) -> Tensor:
    values = torch.from_numpy(halves.astype(np.float32))
    return values.masked_fill(values <= LEAST_HALF, -torch.inf)
