"""The contrast of TIS-DPO (arXiv 2410.04350): two models pi+ and pi- that find good text differently likely."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import hf_hub_download

from prefkd.data.fingerprints import Fingerprint, folder_fingerprint
from prefkd.data.rows import INSTRUCTIONS
from prefkd.data.sides import ModelSide
from prefkd.errors import PrefkdError
from prefkd.files import fingerprint
from prefkd.models.load import ModelConfig, TeacherConfig, embedding_count, load_tokenizer, position_count, read_side
from prefkd.models.served import probe_server
from prefkd.weighting import WeightConfig


@dataclass
class ContrastConfig:
    """Which two models are compared.

    Attributes:
        kind: `prompts`: the teacher under two instructions, TIS-DPO (P). `models`: two models, of which one learned the
            chosen answers and one the rejected ones, by SFT, TIS-DPO (S), or by DPO and reversed DPO, TIS-DPO (D).
            `none`: no contrast, all weights will be 1.
        positive_prompt, negative_prompt: The two instructions; `{prompt}` stands for the user's last message.
        positive, negative: The two models, with the teacher's tokenizer; they read in the teacher's template. Two
            adapters on one base are in memory as one model.
    """

    kind: Literal["prompts", "models", "none"] = "prompts"
    positive_prompt: str = WeightConfig.positive
    negative_prompt: str = WeightConfig.negative
    positive: TeacherConfig | None = None
    negative: TeacherConfig | None = None

    @property
    def instructions(self) -> tuple[str, str] | None:
        """The positive and the negative instruction, None where none are given."""
        return (self.positive_prompt, self.negative_prompt) if self.kind == "prompts" else None

    @property
    def models(self) -> dict[str, TeacherConfig]:
        """The two models by name, empty where there are none."""
        named = {"positive": self.positive, "negative": self.negative}
        return {name: model for name, model in named.items() if model is not None and self.kind == "models"}

    def problems(self) -> Iterator[str]:
        for name in INSTRUCTIONS:
            prompt, model = getattr(self, f"{name}_prompt"), getattr(self, name)
            if self.kind == "prompts" and "{prompt}" not in prompt:
                yield f"{name}_prompt: {prompt!r} lacks {{prompt}}; put it where the user's message belongs"
            if self.kind == "models" and model is None:
                yield f"{name}: missing; kind: models compares two, each with a path and, if it is one, an adapter"
            if self.kind != "models" and model is not None:
                yield f"{name}: goes with kind: models only, and kind is {self.kind}; change one of the two"
        if self.kind == "models" and self.positive is not None and self.positive == self.negative:
            yield "negative: is the same model as positive, so all weights would be 1; name another"

    def fingerprint(self) -> Fingerprint:
        """What the scores of pi+ and pi- depend on."""
        parts: Fingerprint = {"contrast.kind": self.kind}
        if self.kind == "prompts":
            parts |= {f"contrast.{name}_prompt": getattr(self, f"{name}_prompt") for name in INSTRUCTIONS}
        for name, model in self.models.items():
            parts |= model_fingerprint(f"contrast.{name}", model)
        return parts


def weights_fingerprint(config: ModelConfig, of_folder: Callable[[Path], str] = folder_fingerprint) -> str:
    """Which weights a model has: those of a folder by content, those from the Hub by commit.

    Args:
        of_folder: How closely a folder is looked at; `sampled_fingerprint` is fast.
    """
    if Path(config.path).is_dir():
        return of_folder(Path(config.path))
    # It lies in a folder that is named for the commit, which not every transformers tells.
    outline = Path(hf_hub_download(config.path, "config.json", revision=config.hub["revision"]))
    return fingerprint("hub", config.path, outline.parent.name)


def model_fingerprint(
    name: str, config: TeacherConfig, of_folder: Callable[[Path], str] = folder_fingerprint
) -> Fingerprint:
    """What a frozen model says depends on: its weights, its adapter and how both are stored.

    Of a model behind a server that is its name, and what it says of a text of ours.

    Args:
        of_folder: As for `weights_fingerprint`.

    Raises:
        PrefkdError: The server does not say it.
    """
    if config.server is not None:
        return {
            f"{name}.model": f"{config.server.model} on a server",
            f"{name}.probe": probe_server(config.server, read_side(config)),
        }
    return {
        f"{name}.model": weights_fingerprint(config, of_folder),
        f"{name}.adapter": of_folder(Path(config.adapter)) if config.adapter else None,
        f"{name}.dtype": config.dtype,
        f"{name}.quantization": config.quantization,
    }


def fewest_embeddings(configs: Iterable[TeacherConfig]) -> int | None:
    """How many tokens all models have an embedding for; None where that is known of none."""
    return min((count for count in map(embedding_count, configs) if count is not None), default=None)


def fewest_positions(configs: Iterable[TeacherConfig]) -> int | None:
    """How many positions all models have; None where that is known of none."""
    return min((count for count in map(position_count, configs) if count is not None), default=None)


def require_one_tokenizer(teacher: ModelSide, models: Mapping[str, TeacherConfig]) -> None:
    """Make sure that pi+ and pi- read the same tokens as the teacher.

    Raises:
        PrefkdError: One of them has another tokenizer.
    """
    for name, config in models.items():
        if load_tokenizer(config).get_vocab() != teacher.tokenizer.get_vocab():
            raise PrefkdError(
                f"contrast.{name}: {config.label} has a different tokenizer from the teacher {teacher.name}; "
                "name a model of the teacher's family"
            )
