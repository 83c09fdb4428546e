"""What goes with a trained model: a model card, and, where it is asked for, a place on the Hugging Face Hub."""

import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCardData, get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id
from omegaconf import OmegaConf

import prefkd
from prefkd.catalog import CONFIGS
from prefkd.config import read_yaml
from prefkd.config.fields import setting
from prefkd.errors import PrefkdError, first_line
from prefkd.files import sha256
from prefkd.keys import hub_token, without_keys
from prefkd.models.load import LearnerConfig, ModelConfig, TeacherConfig
from prefkd.models.lora import CONFIG
from prefkd.ranks import Ranks
from prefkd.training.display import Display
from prefkd.training.metrics import Outcome

# Settings about this machine and its user, which say nothing of the model.
_LOCAL = ("output_dir", "metric_logger", "push_to_hub")
_SERVERS = ("url", "base_url")


@dataclass
class HubConfig:
    """Put the trained model on the Hugging Face Hub, with HF_TOKEN from the environment or from a file .env.

    Attributes:
        repo_id: owner/name of the repository, which is made if there is none.
        private: Whether a new repository can be seen by its owner alone.
    """

    repo_id: str
    private: bool = True

    def problems(self) -> Iterator[str]:
        try:
            validate_repo_id(self.repo_id)
            wrong = self.repo_id.count("/") != 1
        except HFValidationError:
            wrong = True
        if wrong:
            yield f"repo_id: {self.repo_id} is not the id of a repository; write owner/name"
        if not (hub_token() or get_token()):
            yield "repo_id: there is no token to write with; put one into HF_TOKEN or .env"


def write_card(recipe: str, config: Any, folder: Path, outcome: Outcome, *, ranks: Ranks) -> None:
    """Write README.md into the folder of a trained model: what it was made from, how, what came of it, how to use it.

    Args:
        config: The recipe's config, with a model that learns and perhaps a teacher.
        outcome: Held-out metrics.
    """
    if ranks.is_main:
        settings = read_yaml(config.output_dir / "config.yaml")
        text = card(recipe, config, settings, folder.name, outcome)
        (folder / "README.md").write_text(text, encoding="utf-8")
    ranks.wait()


def card(recipe: str, config: Any, settings: Mapping[Any, Any], kind: str, outcome: Outcome) -> str:
    """The text of a model card. It names files of this machine without their folders (`public_name`).

    Args:
        settings: The config as it was written down.
        kind: `student`, `model` or `adapter`.
    """
    base = setting(config, ModelConfig, but=TeacherConfig)
    assert base is not None, "a recipe trains a model"
    on_hub, name = not Path(base.path).is_dir(), public_name(base.path)
    header = ModelCardData(
        base_model=base.path if on_hub else None,
        library_name="peft" if kind == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=["prefkd", recipe],
    )
    stored = base.quantization if isinstance(base, LearnerConfig) else "none"
    data = config.data
    held_out = data.held_out_source and public_name(data.held_out_source, read_folder=True)
    held_out = held_out or data.held_out_split or f"{data.held_out_fraction:.0%} of the pairs"
    pairs = ", ".join(public_name(part.source, read_folder=True) for part in data.parts)
    made_from = {
        "Start": f"`{name}`" + (f", in {stored} while adapters learned" if stored != "none" else ""),
        **_teacher(config),
        "Pairs": f"`{pairs}`" + (", chosen and rejected swapped" if data.reverse else ""),
        "Held-out pairs": f"`{held_out}`",
    }
    shown = {name: _without_folders(value) for name, value in settings.items() if name not in _LOCAL}
    return "\n".join(
        [
            *("---", header.to_yaml(), "---", "", f"# {name.rpartition('/')[2]}, {recipe}", ""),
            f"Trained with recipe `{recipe}` of prefkd {prefkd.__version__}.",
            *("", *(f"- **{name}**: {value}" for name, value in made_from.items()), ""),
            *("## Held-out pairs", "", *_results(outcome), ""),
            *("## Use", "", "```python", *_use(kind, base.path if on_hub else f"path of {name}", base), "```", ""),
            *("## Settings", "", "```yaml", OmegaConf.to_yaml(OmegaConf.create(shown)).rstrip(), "```", ""),
        ]
    )


def public_name(path: str, *, read_folder: bool = False) -> str:
    """What others may call a file or a folder of this machine: its base name, and of a file a part of its SHA-256.

    Shipped files have the name that a config gives them. What is not here, the id of a repository say, stays as it is,
    but for what an address may hold of a password or a key.

    Args:
        read_folder: Whether a folder, of data say, is told by the content of its files too.
    """
    place = Path(os.path.expanduser(path))
    if not os.path.exists(place):  # unlike Path.exists, for a long text too
        return place.name if place.is_absolute() else without_keys(path)
    if place.resolve().is_relative_to(CONFIGS):
        return place.resolve().relative_to(CONFIGS).as_posix()
    name = place.resolve().name
    if place.is_file():
        return f"{name} (sha256 {sha256(place)[:12]})"
    if not read_folder:
        return name
    files = sorted(file for file in place.rglob("*") if file.is_file())
    digests = "".join(f"{file.relative_to(place).as_posix()} {sha256(file)}\n" for file in files)
    return f"{name} (sha256 {hashlib.sha256(digests.encode()).hexdigest()[:12]})"


def try_it(folder: Path) -> str:
    """A command that lets a saved model answer."""
    code = (
        "import sys, transformers; chat = transformers.pipeline('text-generation', sys.argv[1]); "
        "answer = chat([{'role': 'user', 'content': sys.argv[2]}], tokenizer=chat.tokenizer); "
        "print(answer[0]['generated_text'][-1]['content'])"
    )
    return f'talk to it: python -c "{code}" {shlex.quote(str(folder))} "Hello!"'


def push(hub: HubConfig | None, folder: Path, *, ranks: Ranks, display: Display) -> None:
    """Upload a folder to the Hub if that is asked for.

    Raises:
        PrefkdError: The Hub does not take it. The folder stays as it is.
    """
    if hub is None or not ranks.is_main:
        return
    api = HfApi(token=hub_token())
    try:
        api.create_repo(hub.repo_id, private=hub.private, exist_ok=True)
        adapter = _adapter_config(folder)
        left_out = [CONFIG] if adapter else None
        commit = "Upload a model trained with prefkd"
        api.upload_folder(repo_id=hub.repo_id, folder_path=folder, commit_message=commit, ignore_patterns=left_out)
        if adapter:
            api.upload_file(repo_id=hub.repo_id, path_or_fileobj=adapter, path_in_repo=CONFIG, commit_message=commit)
    except Exception as error:  # of huggingface_hub and of the network, a dozen unrelated types
        reason, again = first_line(error), f"hf upload {hub.repo_id} {folder}"
        raise PrefkdError(f"{hub.repo_id} does not take {folder}: {reason}; `{again}` tries once more") from error
    display.say(f"pushed to https://huggingface.co/{hub.repo_id}")


def _results(outcome: Outcome) -> list[str]:
    if not outcome.written:
        return ["There were no held-out pairs."]
    columns, results = (outcome.before, outcome.written, outcome.in_memory), outcome.results()
    rows = [
        f"| {name.removeprefix('held_out/')} | {' | '.join(f'{column[name]:.4f}' for column in columns)} |"
        for name in results
    ]
    constant = [
        f"{name.removeprefix('held_out/')} {value:.4f}" for name, value in outcome.before.items() if name not in results
    ]
    return [
        "Before training, after it as this folder is read back, and after it in memory.",
        *("", "| | before | after | after, in memory |", "|---|---|---|---|", *rows),
        *(("", f"Unchanged: {', '.join(constant)}.") if constant else ()),
    ]


def _without_folders(value: Any) -> Any:
    """A setting in which no path names the folders of this machine."""
    if isinstance(value, Mapping):
        return {name: _without_folders(part) for name, part in value.items() if name not in _SERVERS}
    if isinstance(value, list):
        return [_without_folders(part) for part in value]
    return public_name(value) if isinstance(value, str) and "/" in value else value


def _adapter_config(folder: Path) -> bytes:
    """An adapter's config for others, empty if there is none or nothing in it is of this machine.

    In the folder here it keeps the path of its base, from which peft loads it.
    """
    if not (folder / CONFIG).is_file():
        return b""
    written = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    base = written["base_model_name_or_path"]
    if not Path(base).is_dir():
        return b""
    return json.dumps(written | {"base_model_name_or_path": public_name(base)}, indent=2).encode()


def _teacher(config: Any) -> dict[str, str]:
    teacher: Any = setting(config, TeacherConfig)
    if teacher is None:
        return {}
    if teacher.server is not None:
        return {"Teacher": f"`{teacher.server.model}` on a {teacher.server.engine} server"}
    if teacher.path is None:
        return {"Teacher": f"scores in `{public_name(str(teacher.scores), read_folder=True)}`"}
    adapter = f" with the adapter `{public_name(teacher.adapter)}`" if teacher.adapter else ""
    quantized = f", {teacher.quantization}" if teacher.quantization != "none" else ""
    return {"Teacher": f"`{public_name(teacher.path)}`{adapter}, {teacher.dtype}{quantized}"}


def _use(kind: str, path: str, base: ModelConfig) -> list[str]:
    pinned = f', revision="{base.revision}"' if base.revision else ""
    load = {
        "adapter": [
            "from peft import PeftModel",
            f'base = AutoModelForCausalLM.from_pretrained("{path}"{pinned})',
            'model = PeftModel.from_pretrained(base, "this folder")',
            'model.generation_config = GenerationConfig.from_pretrained("this folder")  # its ends',
        ]
    }.get(kind, ['model = AutoModelForCausalLM.from_pretrained("this folder")'])
    return [
        f"from transformers import AutoModelForCausalLM, AutoTokenizer{', GenerationConfig' * (kind == 'adapter')}",
        *load,
        'tokenizer = AutoTokenizer.from_pretrained("this folder")',
        'messages = [{"role": "user", "content": "How do I poach an egg?"}]',
        'options = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}',
        "asked = tokenizer.apply_chat_template(messages, **options)",
        "written = model.generate(**asked, max_new_tokens=100, tokenizer=tokenizer)[0, asked.input_ids.shape[1] :]",
        "print(tokenizer.decode(written, skip_special_tokens=True))",
    ]
