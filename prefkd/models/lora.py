"""LoRA: low-rank adapters on a frozen base, in peft's format.

Adapters are put into the transformers model in place, so that it stays the model that everything else knows. peft does
it; the methods that transformers has for it (`add_adapter` and others) refuse the peft that goes with our torchao.
"""

import filecmp
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.functional import set_adapter
from peft.tuners.tuners_utils import BaseTunerLayer, cast_adapter_dtype
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prefkd.config.hints import size_problems
from prefkd.errors import PrefkdError, Problem, nearest
from prefkd.files import read_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of each weight in an adapter's file
ONLY = "default"  # peft's name for the adapter of a model that has one


@dataclass
class LoraConfig:
    """Train low-rank adapters and leave the base as it is: `W x` becomes `W x + (alpha / rank) B A x`.

    LoRA, arXiv 2106.09685.

    Attributes:
        rank: Rows of A and columns of B.
        alpha: Scale of what the adapters add, before it is divided by the rank.
        dropout: Share of the inputs of A that is set to zero in training.
        target_modules: Names of the linear layers that get one, such as q_proj; null = all but the output layer.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: list[str] | None = None

    def problems(self) -> Iterator[str]:
        yield from size_problems(self, "rank")
        if self.alpha <= 0:
            yield f"alpha: {self.alpha} would switch the adapters off; use a positive number, such as twice the rank"
        if not 0 <= self.dropout < 1:
            yield f"dropout: {self.dropout} is not a share; use 0.0 or more, and less than 1"
        if self.target_modules == []:
            yield "target_modules: names no layer; leave it out for all linear layers"


def add_adapter(lm: PreTrainedModel, config: LoraConfig, *, seed: int, revision: str | None = None) -> None:
    """Freeze a model and put new adapters into it, float32, that change nothing yet (B = 0).

    Args:
        seed: A is drawn with it, the same on each rank.
        revision: Commit, tag or branch of the model on the Hub, by which a reader of the adapter finds its base.

    Raises:
        PrefkdError: A name in `target_modules` is that of no linear layer, or of the output layer; or the rank is
            larger than any layer's.
    """
    if text := adapter_misfit(lm, config):
        raise PrefkdError(f"lora.{text}")
    lm.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # peft draws on the CPU
        torch.manual_seed(seed)
        adapter = PeftLoraConfig(
            base_model_name_or_path=lm.name_or_path,
            revision=revision,
            task_type="CAUSAL_LM",
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=config.target_modules or "all-linear",
        )
        _inject(lm, adapter, ONLY)


def adapter_misfit(lm: PreTrainedModel, config: LoraConfig) -> str | None:
    """Why a model, or its outline, takes no such adapters: the key, and what to do; None if it takes them."""
    head = lm.get_output_embeddings()
    layers: dict[str, Any] = {
        name.rpartition(".")[2]: module for name, module in lm.named_modules() if _is_linear(module)
    }
    names = [name for name, module in layers.items() if module is not head]
    for name in config.target_modules or ():
        if name not in names:
            where = f"no linear layer of {lm.name_or_path} is named {name}{nearest(name, names)}"
            refusal = f"{name} is the output layer of {lm.name_or_path}, which takes no adapter; leave it out"
            return f"target_modules: {refusal if name in layers else where}"
    targets = config.target_modules or names
    widest = max((min(layer.weight.shape) for name, layer in layers.items() if name in targets), default=0)
    if widest and config.rank > widest:
        return (
            f"rank: {config.rank} is more than the layers of {lm.name_or_path} have, {widest} at most; lower it, "
            "or train all weights with lora: null"
        )
    return None


def load_adapter(lm: PreTrainedModel, folder: str, *, name: str = ONLY) -> None:
    """Put a saved adapter into a model, as a constant, and make it the active one.

    Args:
        folder: An adapter in peft's format.
        name: Its name, where a model gets several; without dots.

    Raises:
        PrefkdError: It is damaged, or made for another model.
    """
    misfit = f"the adapter {folder}, trained on {trained_on(folder)}, does not fit {lm.name_or_path}"
    try:
        config = PeftConfig.from_pretrained(folder)
        config.inference_mode = True
        weights = load_file(Path(folder) / WEIGHTS)
        _inject(lm, config, name)
        weights = {weight.removeprefix(PREFIX): value for weight, value in weights.items()}
        loaded: Any = set_peft_model_state_dict(lm, weights, name)
    except Exception as error:  # peft and safetensors raise a dozen unrelated types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise PrefkdError(f"{misfit}: {reason}") from error
    without = [weight for weight in loaded.missing_keys if f".{name}." in weight]
    if loaded.unexpected_keys or without:
        stray = (loaded.unexpected_keys or without)[0].replace(f".{name}.", ".")
        raise PrefkdError(f"{misfit}: {stray} is in only one of the two")
    if isinstance(lm.get_output_embeddings(), BaseTunerLayer):
        raise PrefkdError(f"the adapter {folder} changes the output layer, which is not supported; train one without")
    use_adapter(lm, name)


def use_adapter(lm: PreTrainedModel, name: str) -> None:
    """Make one of the loaded adapters the active one."""
    set_adapter(lm, name, inference_mode=True)


@contextmanager
def adapters_off(lm: PreTrainedModel) -> Iterator[None]:
    """Inside, the model is its own base."""
    # Whole layers that an adapter has of its own (peft's modules_to_save) are of another kind than its matrices. Those
    # that the active adapter has not are off already, and peft could not read them if they were switched on.
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    active = [module for module in lm.modules() if isinstance(module, kinds) and not module.disable_adapters]
    _switch(lm, active, on=False)
    try:
        yield
    finally:
        _switch(lm, active, on=True)


def _inject(lm: PreTrainedModel, adapter: PeftConfig, name: str) -> None:
    """Put an adapter without weights into a model, float32 whatever the base is."""
    with warnings.catch_warnings(action="ignore"):  # peft warns about a second adapter, and at GPT-2's kind of layer
        inject_adapter_in_model(adapter, lm, name)
    cast_adapter_dtype(lm, name)


def _switch(lm: PreTrainedModel, modules: Sequence[BaseTunerLayer | AuxiliaryTrainingWrapper], *, on: bool) -> None:
    # peft also switches gradients on and off. FSDP2 asks for that at the first forward pass and remembers the answer,
    # so that adapters which are off then would never learn.
    learns = {parameter: parameter.requires_grad for parameter in lm.parameters()}
    for module in modules:
        module.enable_adapters(on)
    for parameter, requires_grad in learns.items():
        parameter.requires_grad_(requires_grad)


def trained_on(folder: str) -> str:
    """The path or name of the base that an adapter was trained on, as its adapter_config.json has it."""
    written = read_object(Path(folder) / CONFIG)
    if written is None:
        raise PrefkdError(f"{folder}/{CONFIG} is damaged; write the adapter again")
    return written.get("base_model_name_or_path") or "an unnamed model"


def adapter_problems(folder: str, base: str, key: str) -> Iterator[Problem]:
    """What keeps an adapter from being put on a base, as far as the files of the two tell.

    Args:
        folder: The adapter.
        base: Folder or Hub id of the base. Of a model that is not in a folder, nothing is known yet.
        key: Where the config names the adapter.
    """
    text = next(_faults(folder), None)
    if text is not None:
        yield Problem(key, text, about="adapter", paths=(Path(folder),))
        return
    own_base = trained_on(folder)
    remedy = f"name {own_base} as path, or another adapter"
    reason = _misfit(Path(folder), Path(base))
    both = (Path(folder), Path(base), Path(own_base))
    if reason:
        text = f"{folder} was trained on {own_base} and does not fit {base}: {reason}; {remedy}"
        yield Problem(key, text, about="adapter", paths=both)
    elif Path(own_base).is_dir() and Path(base).is_dir() and not _same_weights(Path(own_base), Path(base)):
        text = f"{folder} was trained on {own_base}, and the weights of {base} are others; {remedy}"
        yield Problem(key, text, about="adapter", paths=both)


def _faults(folder: str) -> Iterator[str]:
    """What is wrong with the folder of an adapter itself."""
    if not Path(folder).is_dir():
        yield f"no folder {folder}; name one that holds {CONFIG}"
        return
    for file in (CONFIG, WEIGHTS):
        if not (Path(folder) / file).is_file():
            yield f"{folder} holds no {file}; name the folder of an adapter in peft's format"
            return
    try:
        trained_on(folder)
    except PrefkdError as error:
        yield str(error)


def _misfit(folder: Path, base: Path) -> str:
    """The first weight of an adapter that a base has no place for, empty if there is none or nothing can be known."""
    adapters, layers = _shapes(folder), _shapes(base)
    for name, shape in adapters.items():
        layer, _, matrix = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        width = shape[-1] if matrix == "lora_A" else shape[0]
        found = layers.get(f"{layer}.weight")
        if found and matrix in ("lora_A", "lora_B") and width not in found:
            return f"{layer} is {' x '.join(map(str, found))} there, which the adapter's {width} does not go with"
    return ""


def _shapes(folder: Path) -> dict[str, list[int]]:
    """The shapes of all weights in a folder, read from the heads of its safetensors files."""
    shapes = {}
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, framework="pt") as weights:
                shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        except SafetensorError:
            return {}  # loading it says so
    return shapes


def _same_weights(one: Path, other: Path) -> bool:
    """Whether two folders hold the same safetensors files. Reading ends at the first byte that differs."""
    if one.resolve() == other.resolve():
        return True
    names = [sorted(path.name for path in folder.glob("*.safetensors")) for folder in (one, other)]
    return names[0] == names[1] and all(filecmp.cmp(one / name, other / name, shallow=False) for name in names[0])


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))
