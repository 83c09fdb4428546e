"""Load causal language models and tokenizers from a folder or the Hugging Face Hub."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from prefkd.data.sides import ModelSide
from prefkd.data.template_settings import template_problems
from prefkd.data.vocabulary import Vocabularies
from prefkd.errors import PrefkdError, Problem, first_line
from prefkd.models.lora import adapter_problems, load_adapter
from prefkd.models.quantize import SHARDED_SIZE, quantization_problems
from prefkd.models.server import ServerConfig
from prefkd.models.tokenizers import EMPTY, may_be_hub_id, no_folder, read_tokenizer

logger = logging.getLogger(__name__)


@dataclass
class ModelConfig:
    """A model and how it reads text.

    Attributes:
        path: Folder with a Hugging Face checkpoint (safetensors), or a Hub id `owner/name`.
        template: `chat` = the tokenizer's chat template, `plain` = role headings, `auto` = chat where there is one; or
            a section with kind, path, arguments and thoughts, `prefkd.data.template_settings.TemplateSettings`.
        revision: The commit, tag or branch of a model on the Hub.
        share_prompt: Read prompt, chosen and rejected answer as one row, so that the prompt is computed once. Set it to
            false for a model that cannot take a 4D attention mask.
        trust_remote_code: Run Python code that comes with the checkpoint.
    """

    path: str
    template: Any = "auto"
    revision: str | None = None
    share_prompt: bool = True
    trust_remote_code: bool = False

    @property
    def hub(self) -> dict[str, Any]:
        """How its files are asked for."""
        return {"trust_remote_code": self.trust_remote_code, "revision": self.revision or "main"}

    @property
    def tokenizer_source(self) -> "ModelConfig":
        """Where its tokenizer lies, and how it reads."""
        return self

    @property
    def tokenizer_path(self) -> str:
        """Folder or Hub id of its tokenizer."""
        return self.path

    def problems(self) -> Iterator[Problem | str]:
        wrong = [f"template{text}" for text in template_problems(self.template)]
        yield from wrong
        if self.revision is not None and Path(self.path).is_dir():
            yield f"revision: {self.revision} means nothing to a folder; leave it out"
        for text in () if wrong else self._faults():
            yield Problem("path", text, about="model", paths=(Path(self.path),))

    def _faults(self) -> Iterator[str]:
        folder = Path(self.path)
        if not self.path.strip():
            yield EMPTY
        elif folder.is_dir():
            if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
                yield f"{self.path} is an adapter; give its base here (a teacher takes the adapter as `adapter`)"
            elif not (folder / "config.json").is_file():
                yield f"{self.path} holds no config.json; name the folder of a Hugging Face checkpoint"
            elif not any(folder.glob("*.safetensors")):
                yield f"{self.path} holds no *.safetensors weights; convert the checkpoint or download it again"
            elif lost := _lost_files(folder):
                more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
                yield f"{self.path} lacks {lost[0]}{more}, which its index lists; download it again"
            else:
                try:
                    read_side(self)
                except PrefkdError as error:
                    yield str(error)
        elif folder.exists():
            yield f"{self.path} is a file; name the folder that holds it"
        elif not may_be_hub_id(self.path):
            yield no_folder(self.path)


@dataclass
class LearnerConfig(ModelConfig):
    """A model that is trained.

    Attributes:
        quantization: The linear layers of the base that adapters are trained on, all but the output layer, are stored
            in fewer bits: int8, or nf4 (QLoRA, arXiv 2305.14314). It works only with `lora`.
    """

    quantization: Literal["none", "int8", "nf4"] = "none"


@dataclass
class TeacherConfig(ModelConfig):
    """A frozen model: in memory, or behind a server.

    Attributes:
        path: The model in memory.
        server: A server that has the model in memory, in place of `path`. It gives log-probs and answers, but neither
            hidden states nor logits.
        tokenizer: Folder or Hub id of the tokenizer of the server's model.
        dtype: Type of the weights in memory. (A student keeps float32 weights unless `training.weights` is bfloat16.)
        quantization: Linear layers, all but the output layer, are stored in fewer bits (`prefkd.models.quantize`): int8
            and nf4 everywhere; float8, whose products are made in float8 too, and int4 on GPUs that can. The kernel of
            int4 is made for one token at a time: whole texts should be slower with it than with any other kind. What it
            costs in exactness is printed, and so are the experts of a mixture, which stay as they are.
        adapter: Folder of a LoRA adapter in peft's format, trained on the model at `path`.
        placement: With several processes, `replicate` gives each of them all of the model, `shard` splits it over them,
            for which it must be exact or nf4. `auto` splits what can be split and would fill a quarter of a GPU.
        cpu_offload: A model that is split waits in main memory and comes to the GPU layer by layer.
    """

    path: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    server: ServerConfig | None = None
    tokenizer: str | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    quantization: Literal["none", "int8", "float8", "nf4", "int4"] = "none"
    adapter: str | None = None
    placement: Literal["replicate", "shard", "auto"] = "auto"
    cpu_offload: bool = False

    def problems(self) -> Iterator[Problem | str]:
        if self.server is not None:
            yield from self._server_problems()
            return
        if self.tokenizer is not None:
            yield "tokenizer: goes with server only, since a model in memory has its own; remove it"
        if self.path is None:
            yield "path: missing; give the folder or the Hub id of a model, or a server with a tokenizer"
            return
        yield from super().problems()
        yield from quantization_problems(
            self.quantization, self.torch_dtype, "cuda" if torch.cuda.is_available() else "cpu"
        )
        if self.adapter is not None:
            yield from adapter_problems(self.adapter, self.path, "adapter")
        if self.placement == "shard" and self.quantization not in SHARDED_SIZE:
            yield f"placement: weights of quantization: {self.quantization} cannot be split; use replicate, or nf4"
        if self.cpu_offload and self.placement != "shard":
            yield f"cpu_offload: goes with placement: shard only, and placement is {self.placement}; change one of them"

    def _server_problems(self) -> Iterator[Problem | str]:
        if self.path is not None:
            yield "path: conflicts with server; keep one of them (the server's tokenizer goes into tokenizer)"
        if self.adapter is not None:
            yield "adapter: goes with path; name the adapter that the server serves in server.model"
        if self.quantization != "none":
            yield "quantization: goes with path; set that on the server"
        if self.tokenizer is None:
            yield "tokenizer: missing; give the folder or the Hub id of the tokenizer of the server's model"
            return
        folder = Path(self.tokenizer)
        if folder.exists():
            try:
                read_side(self)
            except PrefkdError as error:
                yield Problem("tokenizer", str(error), about="model", paths=(folder,))
        elif not may_be_hub_id(self.tokenizer):
            yield Problem("tokenizer", no_folder(self.tokenizer), about="model", paths=(folder,))

    @property
    def tokenizer_path(self) -> str:
        """Folder or Hub id of its tokenizer."""
        found = self.path if self.server is None else self.tokenizer
        assert found is not None, "a config without a tokenizer has problems"
        return found

    @property
    def label(self) -> str:
        """What messages call it."""
        if self.server is not None:
            return f"{self.server.model} at {self.server.address}"
        return str(self.path)

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch names it."""
        return getattr(torch, self.dtype)


def _lost_files(folder: Path) -> list[str]:
    """Files of weights that a checkpoint's index names and its folder lacks, after an interrupted download say."""
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return []  # which is read then
    try:
        index = json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
        named = sorted(set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError):
        return []  # there is no index, or loading says what is wrong with it
    return [name for name in named if not (folder / name).is_file()]


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The checkpoint's own fast tokenizer.

    Raises:
        PrefkdError: If there is none, or it is not a fast one (offsets are needed to find parent tokens).
    """
    return read_tokenizer(config.tokenizer_path, **config.hub)


def embedding_count(config: ModelConfig) -> int | None:
    """How many tokens a checkpoint has an embedding for, from its config.json; None where a server has the model.

    Raises:
        PrefkdError: That cannot be read, or tells no number.
    """
    if isinstance(config, TeacherConfig) and config.server is not None:
        return None  # it refuses a token that it has no embedding for
    count = getattr(text_config(config), "vocab_size", None)
    if not isinstance(count, int) or count < 1:
        raise PrefkdError(f"the config.json of {config.path} has the vocab_size {count}; download the model again")
    return count


def position_count(config: ModelConfig) -> int | None:
    """How many positions a row may have, from config.json; None where it names no bound.

    With rotary embeddings of the kind longrope (Phi-3.5), one row beyond the original positions changes the frequencies
    of all rows that are read with it. So these positions are the bound there.

    Raises:
        PrefkdError: The file cannot be read.
    """
    if isinstance(config, TeacherConfig) and config.server is not None:
        return None  # it refuses what is too long for it
    text = text_config(config)
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [kind for kind in rope.values() if isinstance(kind, dict)]
    bounds = [getattr(text, "max_position_embeddings", None)]
    if any(kind.get("rope_type") == "longrope" for kind in kinds):
        bounds += [kind.get("original_max_position_embeddings") for kind in kinds]
        bounds.append(getattr(text, "original_max_position_embeddings", None))
    return min((bound for bound in bounds if isinstance(bound, int)), default=None)


def text_config(config: ModelConfig) -> Any:
    """The config.json of a checkpoint, as far as it is about text.

    Raises:
        PrefkdError: It cannot be read.
    """
    try:
        outline = AutoConfig.from_pretrained(str(config.path), **config.hub)
    except Exception as error:  # transformers raises a dozen unrelated types for a broken file
        raise PrefkdError(f"cannot read the config.json of {config.path}: {first_line(error)}") from error
    return outline.get_text_config()


def read_side(config: ModelConfig, template: str | None = None) -> ModelSide:
    """How a model reads: its tokenizer and template, how many tokens it has an embedding for, and how many positions.

    Args:
        template: Instead of the config's.

    Raises:
        PrefkdError: One of them cannot be used, or they do not belong together.
    """
    return ModelSide(
        load_tokenizer(config),
        template or config.template,  # pyright: ignore[reportArgumentType]
        embeddings=embedding_count(config),
        positions=position_count(config),
    )


def read_vocabularies(student: ModelConfig, teacher: ModelConfig) -> Vocabularies | None:
    """The tokens of two models; None if one of the models is not there."""
    source = teacher.tokenizer_source
    if source.path is None or any(any(config.problems()) for config in (student, teacher)):
        return None
    sides = [ModelSide(load_tokenizer(config), config.template) for config in (student, source)]
    return Vocabularies.of(sides[0].tokenizer, sides[1].tokenizer, (sides[0].eos_id, sides[1].eos_id))


def load_causal_lm(config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The causal language model of a checkpoint, dropout off, weights of type `dtype`, on `device`.

    Weights come from safetensors only, and go straight to a GPU: several processes would not have room for them in main
    memory at one time. A teacher's adapter is put on top. On the device `meta` no weights are read: it is the model's
    outline, which `prefkd.models.shard` fills.

    Raises:
        PrefkdError: If the checkpoint is missing, damaged, of an unknown architecture, or not the adapter's base.
    """
    # Attention is left to transformers: sdpa, or eager for models that cap attention logits, which sdpa cannot.
    how: dict[str, Any] = {"dtype": dtype, "trust_remote_code": config.trust_remote_code}
    try:
        if device.type == "meta":
            outline = AutoConfig.from_pretrained(config.path, **config.hub)
            with device:
                model: Any = AutoModelForCausalLM.from_config(outline, **how).eval()
        else:
            model = AutoModelForCausalLM.from_pretrained(
                config.path, use_safetensors=True, device_map={"": device}, **how | config.hub
            )
    except Exception as error:  # transformers and safetensors raise a dozen unrelated types for a broken checkpoint
        raise PrefkdError(f"cannot load the model of {config.path}: {first_line(error)}") from error
    if isinstance(config, TeacherConfig):
        if dtype == torch.bfloat16 and stored_dtype(config) == torch.float32:
            logger.warning(
                "%s is stored in float32; read in bfloat16 it loses what steps smaller than a unit of bfloat16 have "
                "taught it; use dtype: float32, or train it with training.export=bfloat16",
                config.path,
            )
        if config.adapter is not None:
            load_adapter(model, config.adapter)
    _switch_dropout_off(model)
    return model.to(device)


def stored_dtype(config: ModelConfig) -> torch.dtype:
    """The type in which a checkpoint stores its weights; float32 where it does not say."""
    stored = AutoConfig.from_pretrained(config.path, **config.hub).dtype
    return stored if isinstance(stored, torch.dtype) else torch.float32


def base_dtype(config: ModelConfig, compute: torch.dtype) -> torch.dtype:
    """The smallest type that holds a checkpoint's weights exactly and that can be computed with.

    Adapters are trained on the base as it is stored, since that is what their user puts them on.
    """
    return torch.promote_types(stored_dtype(config), compute)


def decoder_layers(lm: PreTrainedModel) -> list[nn.Module]:
    """The blocks of a model, each of which is sharded and recomputed as one piece."""
    names = set(lm._no_split_modules or ())
    # FSDP2 puts a class of its own over that of a module that it has split.
    return [module for module in lm.modules() if names & {kind.__name__ for kind in type(module).__mro__}]


def sliding_window(lm: PreTrainedModel) -> int | None:
    """The sliding window of a model's attention in positions, None if every layer sees the whole text."""
    text = lm.config.get_text_config()
    if getattr(text, "use_sliding_window", True) is False:
        return None
    return getattr(text, "sliding_window", None)


def _switch_dropout_off(model: nn.Module) -> None:
    # Policy and reference must be compared on equal terms: with dropout a model differs from its own copy.
    for module in model.modules():
        for name in ("p",) if isinstance(module, nn.Dropout) else ("attention_dropout",):
            if hasattr(module, name):
                setattr(module, name, 0.0)


def parameter_count(module: nn.Module | None) -> str:
    """Number of parameters for a reader, such as `135 M`."""
    count = sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"
