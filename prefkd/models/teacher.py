"""The teacher: what it says about a batch, with models in memory or from scores that were written earlier.

A recipe says what it asks. Whether a model or a folder of scores answers is decided once, in `Teacher`; a loss never
asks how the teacher was stored.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from datasets import Dataset
from torch import Tensor

from prefkd.data.batches import PairBatch, ParentScores, TokenBatch
from prefkd.data.fingerprints import Fingerprint, sampled_fingerprint
from prefkd.data.rows import INSTRUCTIONS
from prefkd.data.scores import Scores, open_scores
from prefkd.data.sides import ModelSide
from prefkd.files import fingerprint
from prefkd.models.contrast import model_fingerprint
from prefkd.models.frozen import FrozenModel, load_frozen
from prefkd.models.kept_states import KeptHead, kept_hidden_size, load_head
from prefkd.models.load import ModelConfig, TeacherConfig, load_tokenizer, parameter_count, read_side
from prefkd.models.logprob_cache import KeptLogprobs
from prefkd.models.logprob_model import TokenStates
from prefkd.models.questions import Asks, TeacherSource
from prefkd.models.served import open_served
from prefkd.models.top_states import TopStates
from prefkd.ranks import Ranks


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher says of a microbatch. What it was not asked is None.

    Attributes:
        scores: The log-probs that the student is compared with, and those under pi+ and pi-.
        logprobs: (2, B, P) its own log-prob of each parent.
        states: The states at their targets of `teacher`, and of pi+ and pi-, `positive` and `negative`, or what scores
            keep of them or of their distributions.
    """

    scores: ParentScores | None
    logprobs: Tensor | None
    states: Mapping[str, TokenStates]

    @property
    def signals(self) -> dict[str, Any]:
        """The same by the names that the terms of an objective have for it."""
        reference = self.scores.reference if self.scores else None
        return {"reference": reference, "teacher_logprobs": self.logprobs, **self.states}

    @property
    def reference(self) -> Tensor:
        """(2, B, P) log-prob of each parent under the model that the student is compared with."""
        assert self.scores is not None, "a recipe that compares asks for a reference"
        return self.scores.reference


@dataclass(frozen=True)
class _Reader:
    """A model, and which of the token sequences of a batch it reads."""

    model: Callable[[TokenBatch], Tensor]
    view: Literal["teacher", "positive", "negative"]

    def tokens(self, batch: PairBatch) -> TokenBatch:
        """What it reads of a batch."""
        return getattr(batch, self.view)

    def __call__(self, batch: PairBatch) -> Tensor:
        """log-prob of each parent, (2, B, P)."""
        tokens = self.tokens(batch)
        return batch.parent_sums(self.model(tokens), tokens)


class Teacher:
    """The teacher of a recipe. Its tokenizer is there at once, its weights after `load`.

    Args:
        config: A model, or a `TeacherSource`, which may name scores.
        asks: The questions of the recipe.

    Attributes:
        asked: The questions for a model in memory or behind a server; answers to the others come with the batches.
        models: Models in memory, not those of servers: the teacher, then pi+ and pi- where they are models of their
            own.
        configs: The configs of all models, in memory and behind servers.
        head: Outer layers of a teacher whose hidden states come from scores, after `load`.
        description: A line for the terminal.
    """

    def __init__(self, config: TeacherConfig, asks: Asks):
        self.config = config
        self.asks = asks
        self._folder = config.scores if isinstance(config, TeacherSource) else None
        self.asked = asks if self._folder is None else asks.beyond_scores()
        self.models: list[FrozenModel] = []
        own = [config] if self.asked.of_teacher else []
        self.configs: list[TeacherConfig] = [*own, *self.asked.pair.values()]
        source = "nothing is asked of it" if self._folder is None else f"scores in {self._folder}"
        self.description = f"{source}, no model in memory"
        self.head: KeptHead | None = None
        self._readers: dict[str, _Reader] = {}
        self._stated: dict[str, _Reader] = {}
        self._kept: KeptLogprobs | None = None
        self._chunk_size: int | None = None

    @property
    def has_scores(self) -> bool:
        """Whether it answers from scores."""
        return self._folder is not None

    @cached_property
    def stored(self) -> Scores | None:
        """What recipe score wrote, None without a folder."""
        return open_scores(self._folder) if self._folder is not None else None

    @property
    def together(self) -> tuple[Literal["teacher", "positive", "negative"], ...]:
        """The views of a pair that one model in memory reads: without a mask, it reads all of them in one pass."""
        asked = self.asked
        if asked.instructions is None or self.config.server is not None:
            return ()
        own = asked.reference or asked.logprobs or asked.states
        instructed = [name for name in INSTRUCTIONS if asked.contrast_logprobs or name in asked.contrast_states]
        return ("teacher",) * own + tuple(instructed)  # pyright: ignore[reportReturnType]

    @cached_property
    def side(self) -> ModelSide:
        """How it reads: its own tokenizer, or the one that lies with the scores."""
        if self.stored is None:
            return read_side(self.config)
        template = self.stored.template if self.config.template == "auto" else self.config.template
        if self.config.path is None and self.config.server is None:
            return ModelSide(load_tokenizer(ModelConfig(str(self.stored.tokenizer))), template)
        return read_side(self.config, template)

    @property
    def instructions(self) -> tuple[str, str] | None:
        """The instructions that pairs are aligned with; those of scores had a part in where prompts were cut."""
        return self.asks.instructions if self.stored is None else self.stored.instructions

    def require(self, reading: Fingerprint) -> None:
        """Make sure that pairs are read as they were for the scores, if there are any; see `Scores.require`."""
        if self.stored is not None:
            self.stored.require(reading)

    def attach(self, aligned: Dataset, split: Literal["train", "held_out"]) -> Dataset:
        """Add what it said of the pairs earlier, if it did; see `Scores.attach`."""
        stored = self.stored
        return aligned if stored is None else stored.attach(aligned, split, states=self.asks.kept_states)

    @property
    def kept_hidden_size(self) -> int:
        """H of the hidden states that come from scores, 0 where none do."""
        return kept_hidden_size(self._folder) if self.asks.kept_states and self._folder is not None else 0

    def load(self, probe: TokenBatch, *, ranks: Ranks, **reading: Any) -> None:
        """Load its models, if anything is asked of one, or the layers that read hidden states from scores.

        Args:
            probe: A pair of its tokens, on which each model is checked.
            reading: Settings of `LogprobModel` for each model.

        Raises:
            PrefkdError: See `load_frozen`.
        """
        self._kept, self._chunk_size = KeptLogprobs(ranks), reading.get("chunk_size")
        if self.asks.kept_states and self._folder is not None:
            self.head = load_head(self._folder, device=ranks.device, dtype=self.config.torch_dtype)
            size = f"{self.head.size / 2**20:,.1f} MiB"
            self.description = f"hidden states and log-probs in {self._folder}; in memory its outer layers, {size}"
        if not self.asked.any:
            return
        local = [config for config in self.configs if config.server is None]
        self.models = load_frozen(local, probe=probe, ranks=ranks, **reading)
        in_memory = iter(self.models)
        opened = [
            next(in_memory) if config.server is None else open_served(config.server, read_side(config), probe, ranks)
            for config in self.configs
        ]
        names = ["teacher"] * self.asked.of_teacher + [*self.asked.pair]
        readers = {name: _Reader(model, "teacher") for name, model in zip(names, opened, strict=True)}
        if self.asked.instructions is not None:
            own = opened[0]
            readers |= {"positive": _Reader(own, "positive"), "negative": _Reader(own, "negative")}
        asked_for = {"teacher"} if self.asked.reference or self.asked.logprobs else set()
        asked_for |= set(INSTRUCTIONS) if self.asked.has_contrast and self.asked.contrast_logprobs else set()
        self._readers = {name: reader for name, reader in readers.items() if name in asked_for}
        stated = ("teacher",) * self.asked.states + self.asked.contrast_states
        self._stated = {name: reader for name, reader in readers.items() if name in stated}
        bases = {id(model.base): model.base for model in self.models}
        size = " + ".join(parameter_count(base) for base in bases.values())
        stored = f"; log-probs from {self._folder}" if self._folder is not None else ""
        first = opened[0]
        is_here = isinstance(first, FrozenModel)
        storage = f"{size} parameters, {first.storage}" if is_here else f"{first.config.engine} server"
        self.description = f"{self.configs[0].label}  {storage}{stored}"

    def __call__(self, batch: PairBatch) -> TeacherOutput:
        """What it says of a microbatch. Log-probs of a pair that was read before are not read again."""
        assert self._kept is not None, "a teacher is loaded before it is asked"
        logprobs = self._kept.find(batch) if self._readers else {}
        if logprobs is not None:
            return self._output(batch, logprobs, self._model_states(batch) | self._kept_states(batch))
        output, logprobs = self._read(batch)
        self._kept.keep(batch, logprobs)
        return output

    def fingerprint(self) -> Fingerprint:
        """What it says depends on: its models, as far as they are asked, and its scores."""
        names = ["teacher"] * self.asked.of_teacher + [f"contrast.{name}" for name in self.asked.pair]
        parts: Fingerprint = {}
        for name, config in zip(names, self.configs, strict=True):
            parts |= model_fingerprint(name, config, sampled_fingerprint)
        if self.stored is not None:
            parts["teacher.scores"] = fingerprint("scores", self.stored.fingerprint)
        return parts

    def state_dict(self) -> dict[str, Any]:
        """What is kept of its readings, for a checkpoint."""
        assert self._kept is not None, "a teacher is loaded before it is asked"
        return self._kept.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        assert self._kept is not None, "a teacher is loaded before it is asked"
        self._kept.load_state_dict(state_dict)

    def read(self, batch: PairBatch) -> TeacherOutput:
        """What it says of a microbatch that is asked about once: its models read it, and nothing is kept."""
        return self._read(batch)[0]

    @torch.no_grad()
    def logprobs(self, batch: PairBatch) -> dict[str, Tensor]:
        """log-prob of each parent by name, (2, B, P) each, of a microbatch that is asked about once: `teacher`,
        `positive` and `negative`, as far as they are asked."""
        return self._answers(batch)[0]

    @torch.no_grad()
    def _read(self, batch: PairBatch) -> tuple[TeacherOutput, dict[str, Tensor]]:
        logprobs, states = self._answers(batch)
        return self._output(batch, logprobs, states | self._kept_states(batch)), logprobs

    def _answers(self, batch: PairBatch) -> tuple[dict[str, Tensor], dict[str, TokenStates]]:
        """What the models answer: log-probs of parents, and states."""
        if batch.together is not None and self.models and self.models[0].packs:
            return self._answers_together(batch, batch.together)
        states = self._model_states(batch)
        logprobs = {
            # The states that are asked for too make a second reading of the same tokens needless.
            name: batch.parent_sums(states[name].logprobs(), reader.tokens(batch)) if name in states else reader(batch)
            for name, reader in self._readers.items()
        }
        return logprobs, states

    def _answers_together(
        self, batch: PairBatch, together: TokenBatch
    ) -> tuple[dict[str, Tensor], dict[str, TokenStates]]:
        """The same from one pass over all readings, so that quantized weights are unpacked once."""
        model, count = self.models[0], len(together.targets) // len(self.together)
        if not self._stated:
            values = zip(self.together, model(together).split(count), strict=True)
            return {name: batch.parent_sums(own, self._readers[name].tokens(batch)) for name, own in values}, {}
        whole, states = model.states(together), {}
        for index, name in enumerate(self.together):
            own: TokenBatch = getattr(batch, name)
            part = whole.part(index * count, (index + 1) * count)
            states[name] = replace(part, lengths=own.lengths)
        logprobs = {
            name: batch.parent_sums(states[name].logprobs(), reader.tokens(batch))
            for name, reader in self._readers.items()
        }
        return logprobs, {name: states[name] for name in self._stated}

    def _model_states(self, batch: PairBatch) -> dict[str, TokenStates]:
        found = {}
        for name, reader in self._stated.items():
            assert isinstance(reader.model, FrozenModel), "a server has no states"
            found[name] = reader.model.states(reader.tokens(batch))
        return found

    def _kept_states(self, batch: PairBatch) -> dict[str, TokenStates]:
        found: dict[str, TokenStates] = {}
        for name in self.asks.kept:
            found[name] = TopStates.of(batch.kept[name], batch, self._chunk_size)
        if self.head is not None:
            found["teacher"] = self.head.states(batch, self._chunk_size)
        return found

    def _output(self, batch: PairBatch, logprobs: dict[str, Tensor], states: dict[str, TokenStates]) -> TeacherOutput:
        """Put together what its models say and what came with the batch."""
        found = {name: logprobs[name] for name in INSTRUCTIONS if name in logprobs}
        if self.asked.reference:
            found["reference"] = logprobs["teacher"]
        scores = replace(batch.scores, **found) if batch.scores else ParentScores(**found) if found else None
        own = None
        if self.asks.logprobs:
            own = logprobs["teacher"] if self.asked.logprobs else scores and scores.reference
        return TeacherOutput(scores, own, states)
