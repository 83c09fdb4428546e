"""What goes with a trained model: a model card, and, where it is asked for, a place on the Hugging Face Hub."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCardData, get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id
from omegaconf import OmegaConf

import prefkd
from prefkd.config import read_yaml
from prefkd.config.fields import setting
from prefkd.errors import PrefkdError
from prefkd.hub import hub_token
from prefkd.models.load import ModelConfig, TeacherConfig
from prefkd.ranks import Ranks
from prefkd.training.display import Display

# Settings about this machine and its user, which say nothing of the model.
_LOCAL = ("output_dir", "metric_logger", "push_to_hub")


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


def write_card(
    recipe: str, config: Any, folder: Path, before: Mapping[str, float], after: Mapping[str, float], *, ranks: Ranks
) -> None:
    """Write README.md into the folder of a trained model: what it was made from, how, what came of it, how to use it.

    Args:
        config: The recipe's config, with a model that learns and perhaps a teacher.
        before, after: Held-out metrics before and after training.
    """
    if ranks.is_main:
        settings = read_yaml(config.output_dir / "config.yaml")
        text = card(recipe, config, settings, folder.name, before, after)
        (folder / "README.md").write_text(text, encoding="utf-8")
    ranks.wait()


def card(
    recipe: str,
    config: Any,
    settings: Mapping[Any, Any],
    kind: str,
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> str:
    """The text of a model card.

    Args:
        settings: The config as it was written down.
        kind: `student`, `model` or `adapter`.
    """
    base = setting(config, ModelConfig, but=TeacherConfig)
    assert base is not None, "a recipe trains a model"
    on_hub = not Path(base.path).is_dir()
    header = ModelCardData(
        base_model=base.path if on_hub else None,
        library_name="peft" if kind == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=["prefkd", recipe],
    )
    data = config.data
    held_out = data.held_out_source or data.held_out_split or f"{data.held_out_fraction:.0%} of them"
    made_from = {
        "Start": f"`{base.path}`",
        **_teacher(config),
        "Pairs": f"`{data.source}`" + (", chosen and rejected swapped" if data.reverse else ""),
        "Held-out pairs": f"`{held_out}`",
    }
    shown = {name: value for name, value in settings.items() if name not in _LOCAL}
    metrics = [f"| {name.removeprefix('held_out/')} | {before[name]:.4f} | {after[name]:.4f} |" for name in before]
    results = ["| | before | after |", "|---|---|---|", *metrics] if metrics else ["There were no held-out pairs."]
    return "\n".join(
        [
            *("---", header.to_yaml(), "---", "", f"# {base.path.rstrip('/').rpartition('/')[2]}, {recipe}", ""),
            f"Trained with recipe `{recipe}` of prefkd {prefkd.__version__}.",
            *("", *(f"- **{name}**: {value}" for name, value in made_from.items()), ""),
            *("## Held-out pairs", "", *results, ""),
            *("## Use", "", "```python", *_use(kind, base.path), "```", ""),
            *("## Settings", "", "```yaml", OmegaConf.to_yaml(OmegaConf.create(shown)).rstrip(), "```", ""),
        ]
    )


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
        api.upload_folder(repo_id=hub.repo_id, folder_path=folder, commit_message="Upload a model trained with prefkd")
    except Exception as error:  # of huggingface_hub and of the network, a dozen unrelated types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        again = f"hf upload {hub.repo_id} {folder}"
        raise PrefkdError(f"{hub.repo_id} does not take {folder}: {reason}; `{again}` tries once more") from error
    display.say(f"pushed to https://huggingface.co/{hub.repo_id}")


def _teacher(config: Any) -> dict[str, str]:
    teacher: Any = setting(config, TeacherConfig)
    if teacher is None:
        return {}
    if teacher.path is None:
        return {"Teacher": f"scores in `{teacher.scores}`"}
    adapter = f" with the adapter `{teacher.adapter}`" if teacher.adapter else ""
    quantized = f", {teacher.quantization}" if teacher.quantization != "none" else ""
    return {"Teacher": f"`{teacher.path}`{adapter}, {teacher.dtype}{quantized}"}


def _use(kind: str, base: str) -> list[str]:
    load = {
        "adapter": [
            "from peft import PeftModel",
            f'base = AutoModelForCausalLM.from_pretrained("{base}")',
            'model = PeftModel.from_pretrained(base, "this folder")',
        ]
    }.get(kind, ['model = AutoModelForCausalLM.from_pretrained("this folder")'])
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        *load,
        'tokenizer = AutoTokenizer.from_pretrained("this folder")',
    ]
