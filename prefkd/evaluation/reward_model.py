"""A reward model: a sequence classifier that reads a prompt and an answer, and says how good the answer is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from prefkd.config.hints import MOST_TOKENS, size_problems
from prefkd.data.formats import Message
from prefkd.data.templates import ChatTemplate, plain_text
from prefkd.errors import PrefkdError, Problem, first_line
from prefkd.models.tokenizers import may_be_hub_id, no_folder


@dataclass
class RewardModelConfig:
    """Which model scores answers.

    Attributes:
        path: Folder or Hub id of a sequence-classification model. One whose tokenizer has a chat template reads the
            conversation in it; another reads prompt and answer as a pair of texts.
        label: Which of its outputs is the reward.
        dtype: Type of the weights in memory.
        max_length: Maximum tokens; of a longer conversation the end is read.
        batch_size: Answers that are read at the same time.
        trust_remote_code: Run Python code that comes with the model.
    """

    path: str
    label: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_length: int = 1024
    batch_size: int = 8
    trust_remote_code: bool = False

    def problems(self) -> Iterator[Problem | str]:
        if Path(self.path).is_dir() and not (Path(self.path) / "config.json").is_file():
            text = f"{self.path} holds no config.json; name the folder of a sequence-classification model"
            yield Problem("path", text, about="model", paths=(Path(self.path),))
        elif Path(self.path).is_file():
            text = f"{self.path} is a file; name the folder that holds it"
            yield Problem("path", text, about="model", paths=(Path(self.path),))
        elif not Path(self.path).exists() and not may_be_hub_id(self.path):
            yield Problem("path", no_folder(self.path), about="model", paths=(Path(self.path),))
        yield from size_problems(self, "batch_size")
        yield from size_problems(self, "max_length", most=MOST_TOKENS)
        yield from size_problems(self, "label", least=0)


class RewardModel:
    """A reward model in memory.

    Args:
        config: Which one.
        device: Where it is.

    Raises:
        PrefkdError: It cannot be loaded, has no trained head, or no such label.
    """

    def __init__(self, config: RewardModelConfig, device: torch.device):
        self.config = config
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                config.path, trust_remote_code=config.trust_remote_code, truncation_side="left", padding_side="right"
            )
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                config.path,
                dtype=getattr(torch, config.dtype),
                use_safetensors=True,
                trust_remote_code=config.trust_remote_code,
                output_loading_info=True,
            )
        except Exception as error:  # transformers and safetensors raise a dozen unrelated types
            raise PrefkdError(f"cannot load the reward model of {config.path}: {first_line(error)}") from error
        model, report = loaded
        if report["missing_keys"]:  # transformers makes them up
            missing = ", ".join(sorted(report["missing_keys"]))
            raise PrefkdError(
                f"reward model {config.path}: it has no weights for {missing}, so its rewards would be random; "
                "name a model that was trained to give rewards"
            )
        if config.label >= model.config.num_labels:
            raise PrefkdError(f"reward model {config.path}: it has {model.config.num_labels} outputs; lower label")
        has_template = bool(self.tokenizer.chat_template)
        self.template = ChatTemplate(self.tokenizer, f"reward model {config.path}") if has_template else None
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # Decoders read the reward at the last token that is not padding.
        model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        self.model = model.to(device).eval()

    @torch.no_grad()
    def score(self, conversations: Sequence[tuple[list[Message], str]]) -> list[float]:
        """The reward of each answer.

        Args:
            conversations: Messages and the answer to them.

        Raises:
            DataError: The chat template refuses one.
        """
        limited = {"truncation": True, "max_length": self.config.max_length}
        encoded = self._encode(conversations, **limited, padding=True, return_tensors="pt")
        return self.model(**encoded.to(self.model.device)).logits[:, self.config.label].float().tolist()

    def truncated(self, conversations: Sequence[tuple[list[Message], str]]) -> list[bool]:
        """Whether `score` reads the end of a conversation alone."""
        encoded = self._encode(conversations, verbose=False)  # it would warn of the lengths that are looked for
        return [len(ids) > self.config.max_length for ids in encoded["input_ids"]]

    def _encode(self, conversations: Sequence[tuple[list[Message], str]], **how: Any) -> Any:
        if self.template is not None:
            written = [self.template.write(messages, answer) for messages, answer in conversations]
            texts: tuple[list[str], ...] = (written,)
        else:
            texts = [_prompt_text(messages) for messages, _ in conversations], [answer for _, answer in conversations]
        return self.tokenizer(*texts, add_special_tokens=self.template is None, **how)


def _prompt_text(messages: Sequence[Message]) -> str:
    """A question as it is; a longer conversation with headings."""
    return messages[0]["content"] if len(messages) == 1 else plain_text(messages)
