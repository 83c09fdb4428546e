"""Preference accuracy: how often a model finds the better answer of a pair more probable than the worse one.

A row of the records of a model and a data set is

    key, file, row                          the pair
    subset                                  its part of the data, if the data is told apart by a field
    chosen_logprob, rejected_logprob        log pi(y|x) in nats, summed over the tokens of the answer, EOS included
    chosen_tokens, rejected_tokens          how many these are, in the model's own tokens
    cut                                     whether something of the pair was truncated

so that all accuracies follow from the records alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from datasets import Dataset

from prefkd.config.hints import size_problems
from prefkd.data.collate import collate_tokens
from prefkd.data.fingerprints import Fingerprint
from prefkd.data.pairs import DataConfig, file_name, load_pairs
from prefkd.data.rows import Reading, row_name
from prefkd.data.settings import MixedRows
from prefkd.data.sources import open_source
from prefkd.data.steps import Microbatch, learner_tokens, pair_lengths
from prefkd.data.tokens import tokenize_pairs
from prefkd.errors import DataError, PrefkdError, Problem, nearest
from prefkd.evaluation.checkpoints import Checkpoint, in_rounds, on_all
from prefkd.evaluation.records import Records
from prefkd.evaluation.statistics import preferred
from prefkd.evaluation.table import Series
from prefkd.evaluation.tasks import Attempts
from prefkd.ranks import Ranks
from prefkd.training.display import Bar
from prefkd.training.run import Portions


@dataclass
class PairsConfig(DataConfig):
    """Pairs to evaluate on, specified as in training.

    Attributes:
        part: `all` pairs of `source`; or those that a training with the same settings has `held_out`.
        by: A field of the rows. The table shows the pairs of each of its values separately, as well as all together;
            without it, those of each of several `sources`.
    """

    part: Literal["all", "held_out"] = "all"
    by: str | None = None

    def problems(self) -> Iterator[Problem | str]:
        yield from super().problems()
        if not self.has_rivals:
            yield "format: answers have no rival to be preferred to; name pairs"
        if self.part == "all":
            for name in ("held_out_source", "held_out_split", "held_out_limit"):
                if getattr(self, name) is not None:
                    yield f"{name}: goes with part: held_out, and part is all; set part, or remove it"


@dataclass
class PreferencesConfig:
    """Preference accuracy on pairs.

    Attributes:
        data: Name -> pairs; the names are those of the table.
        microbatch_size: Pairs of one forward pass.
        microbatch_tokens: Instead, tokens of one forward pass at most, so that all processes have the same work.
        chunk_size: Target tokens whose logits exist at one time; null = as many as the device has room for.
    """

    data: dict[str, PairsConfig] = field(default_factory=dict)
    microbatch_size: int = 8
    microbatch_tokens: int | None = None
    chunk_size: int | None = None

    def problems(self) -> Iterator[str]:
        if not self.data:
            yield "data: names no pairs; give them as name: {source: ...}"
        yield from size_problems(self, "microbatch_size", "microbatch_tokens", "chunk_size")


@dataclass(frozen=True)
class EvaluationPairs:
    """Pairs that models are asked about.

    Attributes:
        config: Where they come from.
        rows: A data set of `prefkd.data.pairs`.
        subsets: Key of each pair -> its value in the field `by`; empty without one.
    """

    config: PairsConfig
    rows: Dataset
    subsets: dict[str, str]

    @property
    def fingerprint(self) -> Fingerprint:
        """What they are and how much of each a model sees."""
        return {
            "data.pairs": self.rows._fingerprint,
            "data.max_length": self.config.max_length,
            "data.max_prompt_length": self.config.max_prompt_length,
            "data.truncation": self.config.truncation,
            "data.by": self.config.by,
        }


def read_pairs(config: PairsConfig) -> EvaluationPairs:
    """Read the pairs of a config.

    Raises:
        DataError: There are none, a row is bad, or there is no field `by`.
    """
    if config.part == "held_out":
        rows = load_pairs(config).held_out
        parts = [config.held_out] if config.held_out else config.parts
    else:
        rows = load_pairs(replace(config, held_out_fraction=0.0)).train
        parts = config.parts
    if not len(rows):
        raise DataError(f"{config.label}: no pair is held out; raise held_out_fraction, or use part: all")
    if config.by is None and config.sources:
        return EvaluationPairs(config, rows, {row_name(row): row["source"] for row in cast(Any, rows)})
    return EvaluationPairs(config, rows, _subsets(parts, config) if config.by else {})


class PreferenceTask:
    """Asks checkpoints which answer of each pair they find more probable.

    Args:
        name: Name of the data.
        pairs: The pairs that checkpoints read.
        config: How it is asked.
        folder: Where the records of each checkpoint go.
        reference: Name of the checkpoint from which rewards are measured, or None.
        ranks: The processes that share the pairs.
    """

    def __init__(
        self,
        name: str,
        pairs: EvaluationPairs,
        config: PreferencesConfig,
        *,
        folder: Path,
        reference: str | None,
        ranks: Ranks,
    ):
        self.name = name
        self.size = len(pairs.rows)
        self.pairs = pairs
        self.config = config
        self.folder = folder
        self.reference = reference
        self.ranks = ranks
        self.records: dict[str, Records] = {}

    def ask(self, checkpoint: Checkpoint, bar: Bar) -> None:
        """Let a checkpoint read the pairs that it has not read before."""
        fingerprint = checkpoint.fingerprint | self.pairs.fingerprint
        records = Records(self.folder / f"{checkpoint.name}.jsonl", fingerprint, self.ranks)
        if records.finished:
            bar.advance(f"{self.name}: {checkpoint.name}, read earlier", steps=self.size)
        else:
            self._read(checkpoint, records, bar)
        self.records[checkpoint.name] = records

    def score(self, attempts: Attempts) -> None:
        """Nothing is left to be judged."""

    def series(self) -> Iterator[Series]:
        """All accuracies of all checkpoints, for each part of the data."""
        reference = self.records.get(self.reference or "")
        for checkpoint, records in self.records.items():
            rows = records.rows
            measured = accuracies(rows, reference.rows if reference and checkpoint != self.reference else None)
            subsets = sorted({row["subset"] for row in rows.values() if row["subset"] is not None})
            for subset in ["", *subsets]:
                for metric, values in measured.items():
                    part = {key: value for key, value in values.items() if subset in ("", rows[key]["subset"])}
                    if part:
                        yield Series(self.name, subset, metric, checkpoint, part)

    def notes(self) -> Iterator[str]:
        """What a reader must know of the pairs."""
        for checkpoint, records in self.records.items():
            cut, left_out = sum(row["cut"] for row in records.rows.values()), self.size - len(records.rows)
            if cut or left_out:
                yield (
                    f"{self.name}, {checkpoint}: {cut} of {self.size} pairs are truncated to "
                    f"{self.pairs.config.max_length} tokens, {left_out} left out"
                )

    def _read(self, checkpoint: Checkpoint, records: Records, bar: Bar) -> None:
        """Which pairs share a forward pass depends on nothing but the pairs, so that a killed run ends as any other."""
        side, share_prompt, label = checkpoint.side, checkpoint.config.share_prompt, f"{self.name}: {checkpoint.name}"
        tokenized = tokenize_pairs(self.pairs.rows, side, config=self.pairs.config)
        if not len(tokenized):
            raise PrefkdError("no pair is left after truncation; raise max_length")
        collate = partial(collate_tokens, tokenized, share_prompt=share_prompt)
        lengths = pair_lengths(tokenized)
        longest_first = sorted(range(len(tokenized)), key=lengths.__getitem__, reverse=True)
        count = partial(learner_tokens, shares_prompt=share_prompt)
        portions = Portions.of(self.config, count, name="preferences.", all=tokenized)
        planned = portions.split("all", longest_first, replace(self.ranks, rank=0, world_size=1))  # dealt out below
        keys = [row_name(row) for row in tokenized.select_columns(["file", "row"])]  # pyright: ignore
        left = [microbatch for microbatch in planned if any(keys[row] not in records.rows for row in microbatch.rows)]
        bar.advance(label, steps=self.size - sum(len(microbatch.rows) for microbatch in left))
        if left:
            on_all(self.ranks, checkpoint.load)
            model = checkpoint.reader(self.config.chunk_size)
            probe = collate(Microbatch([0])).to(self.ranks.device).tokens
            on_all(self.ranks, lambda: model.check(probe, checkpoint.description))

            @torch.no_grad()
            def read(microbatch: Microbatch) -> list[dict[str, Any]]:
                batch = collate(microbatch).to(self.ranks.device)
                logprobs = batch.answer_sums(model(batch.tokens))  # (2, B) log pi(y|x)
                tokens = batch.mask.sum(-1)  # (2, B)
                numbers = zip(microbatch.rows, logprobs.T.tolist(), tokens.T.tolist(), strict=True)
                return [_record(tokenized[row], self.pairs.subsets, *own) for row, *own in numbers]

            for found in in_rounds(self.ranks, left, read):
                records.add(found)
                bar.advance(label, steps=len(found))
        records.finish()


def margins(
    rows: Mapping[str, Mapping[str, Any]], reference: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, dict[str, float]]:
    """Metric -> pair -> how much more the chosen answer gets, from the records of a model, in nats.

    Its log-prob, summed over tokens; the mean over tokens, so that length does not decide; the implicit reward of DPO.

    Args:
        rows: The model's rows by key.
        reference: Rows of the reference, or None. A pair that is not in both has no reward.
    """
    found: dict[str, dict[str, float]] = {
        "logprob_accuracy": {key: row["chosen_logprob"] - row["rejected_logprob"] for key, row in rows.items()},
        "logprob_per_token_accuracy": {
            key: row["chosen_logprob"] / row["chosen_tokens"] - row["rejected_logprob"] / row["rejected_tokens"]
            for key, row in rows.items()
        },
    }
    if reference is not None:
        own = found["logprob_accuracy"]
        theirs = {key: row["chosen_logprob"] - row["rejected_logprob"] for key, row in reference.items()}
        # r(x, y) = beta log pi(y|x) / ref(y|x), DPO eq. 5, arXiv 2305.18290; beta does not change what is preferred.
        found["reward_accuracy"] = {key: own[key] - theirs[key] for key in own if key in theirs}
    return found


def accuracies(
    rows: Mapping[str, Mapping[str, Any]], reference: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, dict[str, float]]:
    """Metric -> pair -> 1 where the chosen answer gets more, 0 where less, 1/2 where both get the same."""
    return {
        metric: dict(zip(values, preferred(np.array(list(values.values()))).tolist(), strict=True))
        for metric, values in margins(rows, reference).items()
    }


def _record(
    pair: Mapping[str, Any], subsets: Mapping[str, str], logprobs: list[float], tokens: list[float]
) -> dict[str, Any]:
    key = row_name(pair)
    if not np.isfinite(logprobs).all():
        raise PrefkdError(f"row {pair['row']} of {pair['file']}: a log-prob is not a number; use dtype: float32")
    return {
        "key": key,
        "file": pair["file"],
        "row": pair["row"],
        "subset": subsets.get(key),
        "chosen_logprob": logprobs[0],
        "rejected_logprob": logprobs[1],
        "chosen_tokens": int(tokens[0]),
        "rejected_tokens": int(tokens[1]),
        "cut": any(Reading.of(pair).cut),
    }


def _subsets(parts: Sequence[MixedRows], config: PairsConfig) -> dict[str, str]:
    """The field `by` of each row of the sources."""
    assert config.by is not None
    found = {}
    for part in parts:
        opened = open_source(str(part.source), split=part.split, subset=part.subset, revision=part.revision)
        for file, read in opened.parts.items():
            name = file_name(part, file, mixed=bool(config.sources))
            for number, row in read():
                if not isinstance(row, dict):
                    continue  # a bad row; reading the pairs has reported it
                if config.by not in row:
                    raise DataError(f"row {number} of {name}: there is no field {config.by}{nearest(config.by, row)}")
                found[row_name({"file": name, "row": number})] = str(row[config.by])
    return found
