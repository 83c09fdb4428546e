"""Whatever settings are given, a run is refused in one line for each problem, or it teaches: never a trace.

All settings of all recipes get values of the right type that make no sense, some at a time, on data that may give too
little. PREFKD_SETTINGS_EXAMPLES sets how many configs of each recipe are tried.
"""

import contextlib
import io
import json
import math
import os
import shutil
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer

from prefkd import catalog
from prefkd.catalog import load_recipe
from prefkd.cli.main import main
from prefkd.config.hints import members, named_sections
from tests.recipes import two_models
from tests.tiny import make_model

EXAMPLES = int(os.environ.get("PREFKD_SETTINGS_EXAMPLES", "2"))
TRAINED = {"sft": "model", "dpo": "model", "dpo_distill": "student", "tis_dpo_distill": "student"}
TRAINED["dskd_distill"] = "student"

INTEGERS = [0, -1, 1, 3, 10**9, 2**63, 2**70]
NUMBERS = [0.0, -1.0, 1.0, 0.5, 1e-300, 1e30, 1e308, math.nan, math.inf, -math.inf]
TEXTS = ["", " ", "nothing", "a\nb", "{prompt}", "../x/y/z", "\x00", "ü" * 300, "~", "null", "owner/name"]
PATHS = [
    "{world}/pairs.jsonl",
    "{world}",
    "{world}/nowhere/deep",
    "",
    ".",
    "/dev/null",
    "/proc/nowhere",
    "a" * 300,
]
BROKEN = ["config_of_words", "config_of_a_list", "no_config", "no_tokenizer", "half_weights", "more_tokens", "no_rows"]
DATA = ["pairs", "one", "same_prompt", "long", "bad", "empty", "unknown"]

# What a config may put into a component: the arguments that users reach for, in and out of range.
COMPONENTS: dict[str, list[Any]] = {
    "optimizer": [
        {"_component_": "torch.optim.AdamW", "lr": 1e-2, "betas": [2, 2]},
        {"_component_": "torch.optim.AdamW", "lr": 1e-2, "betas": [0.9]},
        {"_component_": "torch.optim.AdamW", "lr": 1e-2, "betas": []},
        {"_component_": "torch.optim.AdamW", "lr": 1e-2, "eps": 0.0},
        {"_component_": "torch.optim.AdamW", "lr": 1e-2, "foreach": True, "fused": True},
        {"_component_": "torch.optim.AdamW", "lr": 1e-2, "capturable": True},
        {"_component_": "torch.optim.AdamW", "lr": 1e-2, "maximize": True},
        {"_component_": "torch.optim.SGD", "lr": 1e-2, "momentum": math.nan},
        {"_component_": "torch.optim.SGD", "lr": 1e-2, "nesterov": True},
        {"_component_": "torch.optim.SGD", "lr": 1e-2, "dampening": 1.0, "momentum": 0.9},
        {"_component_": "torch.optim.SGD"},
        {"_component_": "torch.optim.LBFGS"},
        {"_component_": "torch.optim.SparseAdam"},
        {"_component_": "torch.optim.Adafactor", "lr": 1e-2, "d": -1.0},
        {"_component_": "torch.optim.Rprop", "etas": [2.0, 0.1]},
        {"_component_": "torch.optim.Muon"},
        {"_component_": "torch.optim.Optimizer", "defaults": {}},
        {"_component_": "torch.nn.Linear", "in_features": 2, "out_features": 2},
        {"_component_": "builtins.print"},
        {"_component_": "os.getcwd"},
        *({"_component_": "torch.optim.AdamW", "lr": lr} for lr in NUMBERS),
        *({"_component_": "torch.optim.AdamW", "lr": 1e-2, "weight_decay": decay} for decay in NUMBERS),
    ],
    "lr_schedule": [
        {"_component_": "transformers.get_cosine_schedule_with_warmup", "num_warmup_steps": 10**6},
        {"_component_": "transformers.get_cosine_schedule_with_warmup", "num_warmup_steps": -5},
        {"_component_": "transformers.get_cosine_schedule_with_warmup", "num_warmup_steps": 0, "num_cycles": math.nan},
        {"_component_": "transformers.get_constant_schedule"},
        {"_component_": "transformers.get_polynomial_decay_schedule_with_warmup", "num_warmup_steps": 0, "power": -1.0},
        {"_component_": "transformers.get_polynomial_decay_schedule_with_warmup", "num_warmup_steps": 0, "lr_end": 9.0},
        {"_component_": "transformers.get_cosine_with_min_lr_schedule_with_warmup", "num_warmup_steps": 0},
        {"_component_": "transformers.get_inverse_sqrt_schedule", "num_warmup_steps": 0},
        {"_component_": "torch.optim.lr_scheduler.StepLR", "step_size": 0},
        {"_component_": "torch.optim.lr_scheduler.ConstantLR", "factor": 0.0},
        {"_component_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.1},
        {"_component_": "torch.optim.lr_scheduler.ReduceLROnPlateau"},
        {"_component_": "torch.optim.lr_scheduler.LambdaLR", "lr_lambda": 3},
        {"_component_": "builtins.dict"},
    ],
    "metric_logger": [
        {"_component_": "torchtune.training.metric_logging.DiskLogger", "log_dir": "{world}/pairs.jsonl"},
        {"_component_": "torchtune.training.metric_logging.DiskLogger"},
        {"_component_": "torchtune.training.metric_logging.StdoutLogger"},
        {"_component_": "torchtune.training.metric_logging.WandBLogger"},
        {"_component_": "torchtune.training.metric_logging.CometLogger"},
        {"_component_": "builtins.dict"},
        {"_component_": "builtins.int", "x": 1},
    ],
    "loss": [
        *({"beta": beta} for beta in NUMBERS),
        *({"label_smoothing": smoothing} for smoothing in NUMBERS),
        {"reference_free": True},
        {"alpha": -1.0},
        {"_component_": "prefkd.method.preference.ipo_loss", "beta": 0.1},
        {"_component_": "prefkd.method.preference.parent_margin"},
        {"_component_": "builtins.max"},
        {"_component_": "torch.zeros"},
    ],
    "parameters": [
        *({name: value} for name in ("k", "low", "high") for value in NUMBERS),
        {"low": 2, "high": 1},
        {"low": "a"},
        {"top_percent": 0},
        {"top_percent": -5},
        {"seed": 2**70},
        {"min_val": math.nan, "max_val": 1.0},
        {"lower_threshold": 1.0, "upper_threshold": 1.0},
        {"min_scale": 0.0, "max_scale": 0.0},
        {1: 2},
    ],
    "objective": [
        [],
        [{"_component_": "prefkd.training.terms.tis_dpo", "beta": 0.0}],
        [{"_component_": "prefkd.training.terms.tis_dpo", "beta": math.nan}],
        [{"_component_": "prefkd.training.terms.dpo", "beta": 0.1, "weight": math.nan}],
        [{"_component_": "prefkd.training.terms.dpo", "beta": 0.1, "weight": math.inf}],
        [{"_component_": "prefkd.training.terms.dpo", "beta": 0.1, "weight": 1e-320}],
        [{"_component_": "prefkd.training.terms.ipo", "beta": 1e30}],
        [{"_component_": "prefkd.training.terms.cross_entropy", "answers": "both", "weight": 1e308}],
        [{"_component_": "prefkd.training.terms.dual_space", "temperature": 0.0}],
        [{"_component_": "prefkd.training.terms.dual_space", "temperature": math.nan}],
        [{"_component_": "prefkd.training.terms.uld"}, {"_component_": "prefkd.training.terms.alm"}],
        [{"_component_": "prefkd.training.terms.same_vocabulary"}],
        [{"_component_": "prefkd.training.terms.min_ed"}],
        [{"_component_": "builtins.print"}],
        [{}],
        ["dpo"],
    ],
    "scorers": [
        {"a": {"_component_": "prefkd.evaluation.scorers.exact_match"}},
        {"a": {"_component_": "prefkd.evaluation.scorers.rouge_l", "beta": math.nan}},
        {"../a": {"_component_": "prefkd.evaluation.scorers.words"}},
        {"a": {"_component_": "builtins.max"}},
        {"a": 3},
    ],
}
COMPONENTS["model_args"] = [{"pretrained": 3}, {"a b": None}, {"dtype": "half"}]


def base(recipe: str, world: str, out: str) -> dict[str, Any]:
    """A config that trains in two steps, or evaluates quickly."""
    data = {"source": f"{world}/pairs.jsonl", "held_out_fraction": 0.3}
    if recipe == "evaluate":
        return {
            "output_dir": out,
            "checkpoints": {"start": {"path": f"{world}/model"}},
            "preferences": {"data": {"pairs": {"source": f"{world}/pairs.jsonl", "limit": 2}}},
            "answers": {
                "asked": {
                    "prompts": {"source": f"{world}/pairs.jsonl", "limit": 2},
                    "sampling": {"max_new_tokens": 2},
                    "scorers": {"words": {"_component_": "prefkd.evaluation.scorers.words"}},
                }
            },
            "resamples": 100,
        }
    if recipe == "sample":
        prompts = {"source": f"{world}/pairs.jsonl", "limit": 2}
        sampling = {"max_new_tokens": 2, "temperature": 1.0}
        models = {"start": {"path": f"{world}/model"}}
        return {"output_dir": out, "prompts": prompts, "models": models, "answers": 2, "sampling": sampling}
    if recipe == "rank":
        contrast = {"teacher": {"path": f"{world}/teacher"}}
        return {"output_dir": out, "candidates": f"{world}/candidates.jsonl", "contrast": contrast}
    if recipe == "score":
        models = {"student": {"path": f"{world}/student"}, "teacher": {"path": f"{world}/teacher"}}
        return {"output_dir": out, **models, "data": data}
    training = {"batch_size": 4, "microbatch_size": 4, "max_steps": 2, "precision": "float32"}
    common = {
        "output_dir": out,
        "data": data,
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-2},
        "lr_schedule": {"_component_": "transformers.get_constant_schedule"},
        "training": training,
    }
    if recipe in ("sft", "dpo"):
        return {**common, "model": {"path": f"{world}/model"}}
    return {**common, "student": {"path": f"{world}/student"}, "teacher": {"path": f"{world}/teacher"}}


def leaves(section: type, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and type of every setting of a config's class. A named section is called `x`."""
    hints = get_type_hints(section, include_extras=True)
    for part in fields(section):
        path, hint = f"{key}{part.name}", hints[part.name]
        inner = [member for member in members(hint) if is_dataclass(member)]
        named = named_sections(hint)
        if named:
            yield from leaves(named, f"{path}.x.")
        for one in inner:
            yield from leaves(one, f"{path}.")  # pyright: ignore[reportArgumentType]
        if not named and (not inner or type(None) in members(hint)):
            yield path, hint


def nonsense(key: str, hint: Any) -> st.SearchStrategy[Any]:
    """Values of the type of a setting."""
    name = key.rpartition(".")[2]
    if name in COMPONENTS:
        return st.sampled_from(COMPONENTS[name])
    if name in ("source", "held_out_source"):
        return st.sampled_from([*(f"{{world}}/{kind}.jsonl" for kind in DATA), *PATHS, *TEXTS])
    choices: list[Any] = []
    for member in members(hint):
        if get_origin(member) is Literal:
            choices += get_args(member)
        elif member is bool:
            choices += [True, False]
        elif member is int:
            choices += INTEGERS
        elif member is float:
            choices += NUMBERS
        elif member is str and name in ("path", "adapter", "scores", "resume"):
            choices += [*PATHS, "{world}/model", "{world}/teacher", "{world}/scores", "{world}/wide", *TEXTS]
            choices += [f"{{world}}/{kind}" for kind in BROKEN]
        elif member is str:
            choices += TEXTS
        elif member is Path:
            choices += [*PATHS, "{world}/scores", "{world}/model", "{world}/model/model.safetensors"]
        elif member is types.NoneType:
            choices += [None]
        elif get_origin(member) is list:
            choices += [[], [""], ["q_proj"], ["lm_head"], ["nothing"], ["q_proj", "q_proj"]]
    return st.sampled_from(choices or [None])


def put(config: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for name in parents:
        if name == "x" and config:  # the named section that is there
            name = next(iter(config))
        if not isinstance(config.get(name), dict):
            config[name] = {}
        config = config[name]
    if isinstance(value, dict) and "_component_" not in value and isinstance(config.get(last), dict):
        value = config[last] | value
    config[last] = value


def filled(value: Any, world: str) -> Any:
    if isinstance(value, str):
        return value.replace("{world}", world)
    if isinstance(value, dict):
        return {key: filled(item, world) for key, item in value.items()}
    return [filled(item, world) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    two_models.make_world(folder)
    make_model(folder / "model", "llama", "byte_level", seed=1)
    make_model(folder / "wide", "llama", "byte_level", seed=3, hidden_size=48)
    break_models(folder)
    two_models.score(folder, folder / "scored")
    shutil.copytree(folder / "scored" / "scores", folder / "scores")
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]

    def write(name: str, rows: list[Any]) -> None:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("one", rows[:1])
    write("same_prompt", [row | {"prompt": "Hi"} for row in rows])
    write("long", [row | {"prompt": "Hi " * 3000, "chosen": "Hello " * 3000} for row in rows])
    write("bad", [row | {"chosen": ""} for row in rows])
    write("empty", [])
    write(
        "candidates",
        [{"prompt": row["prompt"], "answer": row[name]} for row in rows for name in ("chosen", "rejected")],
    )
    write("unknown", [{"text": "a"}])
    return folder


def break_models(folder: Path) -> None:
    """Models of which a file is not what it should be, one for each name in `BROKEN`."""
    for kind in BROKEN:
        shutil.copytree(folder / "teacher", folder / kind)
    (folder / "config_of_words/config.json").write_text("not JSON")
    (folder / "config_of_a_list/config.json").write_text("[1, 2]")
    (folder / "no_config/config.json").unlink()
    for file in (folder / "no_tokenizer").glob("token*"):
        file.unlink()
    weights = folder / "half_weights/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    tokenizer = AutoTokenizer.from_pretrained(folder / "more_tokens")
    tokenizer.add_special_tokens({"eos_token": "<|stop|>"})
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|stop|>")
    tokenizer.save_pretrained(folder / "more_tokens")
    settings = json.loads((folder / "no_rows/config.json").read_text())
    (folder / "no_rows/config.json").write_text(json.dumps(settings | {"vocab_size": 0}))


def attempt(*arguments: str) -> tuple[int, str, str]:
    """Exit code, and what was written to stdout and to stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


def judge(recipe: str, world: Path, folder: Path, changes: dict[str, Any]) -> str:
    """Try a config; what became of it: refused, failed or ran.

    Raises:
        AssertionError: It ended in another way than a user may see.
    """
    out, config = folder / "out", folder / "config.yaml"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    values = base(recipe, str(world), str(out))
    for key, value in changes.items():
        put(values, key, filled(value, str(world)))
    config.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    code, _, said = attempt("validate", recipe, "--config", str(config))
    assert code in (0, 2), said
    if code == 2:
        assert said and all(line.startswith("error: ") for line in said.splitlines()), said
        return "refused"
    code, shown, said = attempt("run", recipe, "--config", str(config))
    if code == 2:
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert errors and len(errors) == 1, said
        return "failed"
    assert code == 0, said
    if recipe in TRAINED:
        assert_taught(Path(values["output_dir"]), Path(values[TRAINED[recipe]]["path"]), shown)
    return "ran"


def assert_taught(out: Path, start: Path, shown: str) -> None:
    """Numbers are finite, and weights have moved or the user was told that they have not."""
    for line in (out / "metrics.jsonl").read_text().splitlines():
        bad = [name for name, value in json.loads(line).items() if not math.isfinite(value)]
        assert not bad, f"not finite: {bad}"
    files = [*out.glob("model/*.safetensors"), *out.glob("adapter/*.safetensors"), *out.glob("student/*.safetensors")]
    file = max(files, key=lambda path: path.stat().st_mtime)  # the output folder may have been one of the world's
    saved = load_file(file)
    assert all(value.isfinite().all() for value in saved.values()), "weights that are not finite"
    if file.parent.name == "adapter":
        moved = any(value.any() for name, value in saved.items() if "lora_B" in name)
    else:
        before = load_file(start / "model.safetensors")
        moved = any(not torch.equal(value, saved[name].to(value.dtype)) for name, value in before.items())
    assert moved or "learned nothing" in shown, "nothing was learned, and nobody was told"


RECIPES = {path.stem: path for path in sorted(catalog.RECIPES.glob("*.py"))}


def changes_of(recipe: str) -> st.SearchStrategy[dict[str, Any]]:
    hints = {key: hint for key, hint in leaves(load_recipe(RECIPES[recipe]).Config) if key not in SLOW}
    # Components, paths and numbers are where nonsense goes deep.
    keys = [key for key in sorted(hints) for _ in range(weight(key, hints[key]))]
    one = st.sampled_from(keys).flatmap(lambda key: nonsense(key, hints[key]).map(lambda value: (key, value)))
    return st.lists(one, min_size=1, max_size=3).map(dict)


def weight(key: str, hint: Any) -> int:
    """How much more often than others a setting is drawn."""
    if get_origin(hint) is Literal:
        return 1
    return 4 if key.rpartition(".")[2] in COMPONENTS else 2


# lm-eval's thousands of tasks, and endpoints that are asked again and again.
SLOW = {"lm_eval.tasks"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_any_settings(recipe, world, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("current"))  # where an empty output_dir writes
    folder = tmp_path_factory.mktemp(recipe) / "run"
    found: dict[str, int] = {}

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(changes_of(recipe))
    def try_one(changes):
        outcome = judge(recipe, world, folder, changes)
        found[outcome] = found.get(outcome, 0) + 1

    try_one()
