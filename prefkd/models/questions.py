"""What a recipe asks of its teacher, and where the answers come from: a model, a server, or scores."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prefkd.data.scores import open_scores, scores_problems
from prefkd.errors import Problem
from prefkd.models.load import ModelConfig, TeacherConfig


@dataclass
class TeacherSource(TeacherConfig):
    """The teacher of a distillation: a model in memory or behind a server, what recipe `score` wrote down, or both.

    Attributes:
        path: The model in memory. With scores it gives only what they do not hold: hidden states, and logits made of
            them. Without, they come from scores that have them.
        scores: The folder `scores` of a run of recipe `score`. The teacher's tokenizer lies in it, so that nothing of
            the teacher itself is needed; `template: auto` is then the template that was scored.
    """

    scores: Path | None = None

    @property
    def tokenizer_source(self) -> ModelConfig:
        """Itself, or the folder of scores, in which the tokenizer of their teacher lies."""
        if self.path is not None or self.scores is None or any(scores_problems(self.scores)):
            return self
        stored = open_scores(self.scores)
        return ModelConfig(str(stored.tokenizer), stored.template if self.template == "auto" else self.template)

    def problems(self) -> Iterator[Problem | str]:
        if self.path is None and self.server is None and self.scores is None:
            yield "path: missing; give a model, or scores: the folder that recipe score wrote"
        if self.path is not None or self.server is not None:
            yield from super().problems()
        if self.scores is not None:
            yield from scores_problems(self.scores, "scores")


@dataclass(frozen=True)
class Asks:
    """What a recipe asks of its teacher.

    Attributes:
        reference: Log-probs of the answers, to compare the student with.
        instructions: A positive and a negative instruction; under them the teacher is pi+ and pi-.
        pair: Two models, `positive` and `negative`, that are pi+ and pi-.
        logprobs: Log-probs of the answers, for their own sake.
        states: Hidden states at the targets.
        rejected_states: Whether those of rejected answers are among them.
        contrast_logprobs: Whether log-probs of pi+ and pi- are asked, for weights.
        contrast_states: The names `positive` and `negative` of those of pi+ and pi- whose states are asked too.
        kept: The names `teacher`, `positive` and `negative` of those whose distributions come from scores.
        kept_states: Whether the teacher's hidden states come from scores.
        own_start: Whether the student is compared with its own start, whose log-probs then take the place of those
            that scores have.
    """

    reference: bool = False
    instructions: tuple[str, str] | None = None
    pair: Mapping[str, TeacherConfig] = field(default_factory=dict)
    logprobs: bool = False
    states: bool = False
    rejected_states: bool = False
    contrast_logprobs: bool = True
    contrast_states: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    kept_states: bool = False
    own_start: bool = False

    def beyond_scores(self) -> "Asks":
        """What scores do not answer."""
        return Asks(
            pair=self.pair if self.contrast_states else {},
            logprobs=self.logprobs and self.own_start,
            states=self.states,
            rejected_states=self.rejected_states,
            contrast_logprobs=False,
            contrast_states=self.contrast_states,
        )

    @property
    def any(self) -> bool:
        """Whether anything is asked."""
        return self.of_teacher or bool(self.pair)

    @property
    def of_teacher(self) -> bool:
        """Whether anything is asked of the teacher itself."""
        return self.reference or self.instructions is not None or self.logprobs or self.states

    @property
    def has_contrast(self) -> bool:
        """Whether pi+ and pi- are asked."""
        return self.instructions is not None or bool(self.pair)

    def problems(self, config: TeacherSource) -> Iterator[str]:
        """Why a teacher cannot answer, and when a model in the config is not asked anything."""
        if config.server is not None and (self.states or (self.contrast_states and not self.pair)):
            yield (
                "server: has neither hidden states nor logits, which the objective asks for; use a model in memory "
                "(path), or terms that need log-probs alone"
            )
        if config.scores is None:
            return
        asked, where = self.beyond_scores(), "path" if config.server is None else "server"
        if config.path is None and config.server is None and asked.of_teacher:
            what = "log-probs of the teacher besides the student's own start, which scores do not give; add the model"
            if asked.states:
                what = "hidden states, which these scores do not have; add the model, or score with keep.states: true"
            if asked.rejected_states:
                what = "hidden states of rejected answers, which scores never have; add the model"
            yield f"path: missing, but the objective asks for {what}"
        elif (config.path or config.server) and not asked.of_teacher:
            yield f"{where}: conflicts with scores, since nothing is asked of a model; remove it (~teacher.{where})"
