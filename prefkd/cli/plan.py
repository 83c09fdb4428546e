"""`prefkd plan`."""

from pathlib import Path
from typing import Annotated

from rich.console import Console

from prefkd import catalog
from prefkd.catalog import load_recipe
from prefkd.cli.arguments import Config, Overrides, RecipeName, optional
from prefkd.cli.output import say
from prefkd.errors import PrefkdError
from prefkd.terminal import console


def plan(
    recipe: RecipeName,
    overrides: Overrides = (),
    /,
    *,
    config: Config = None,
    nproc_per_node: Annotated[int, optional("N")] = 1,
    gpu: Annotated[str | None, optional("NAME|GIB")] = None,
    json: Annotated[Path | None, optional("FILE")] = None,
) -> None:
    """Estimate what a run needs: parameters, memory, work and disk, from the config.json of its models.

    Neither weights nor data have to exist. Memory is that of the largest microbatch that the config allows.

    For example:
        prefkd plan tis_dpo_distill --config demo/tis_dpo_distill
        prefkd plan tis_dpo_distill --config ./mine.yaml --nproc-per-node 8 --gpu H100
        prefkd plan sft --config ./mine.yaml --gpu 16 --json plan.json training.activation_checkpointing=full

    Args:
        recipe: Name of a recipe, or the path of your own. Without --config, a config that names its recipe.
        overrides: Settings that override the config; ~key removes one.
        config: Name of a config, or the path of your own.
        nproc_per_node: Number of processes, each with its own GPU; 1 by default.
        gpu: GPU that the run has to fit on: H100, A100-40, L40S, RTX-4090 or another known one, or its memory in GiB.
            The smallest that has room by default.
        json: JSON file to write the numbers to.
    """
    if nproc_per_node < 1:
        raise PrefkdError(f"--nproc-per-node {nproc_per_node} leaves no process; give 1 or more")
    from prefkd.estimate.memory import find_card, own_memory, smallest_card

    card = find_card(gpu) if gpu is not None else None
    recipe_path, config_path = catalog.find_run(recipe, config)
    module = load_recipe(recipe_path)
    with Console(stderr=True).status("reading the config"):
        from prefkd.estimate.advice import make_advice
        from prefkd.estimate.plan import as_json
        from prefkd.estimate.reading import read_for_plan
        from prefkd.estimate.settle import settle
        from prefkd.estimate.terminal import print_plan

        settings = read_for_plan(module, recipe, config_path, overrides)
    with Console(stderr=True).status("running a step on meta tensors"):
        settings, found = settle(module, recipe, settings, nproc_per_node, card)
    card = card or smallest_card(found.peak)
    advice = [] if card is None or card.fits(found.peak) else [*make_advice(found, settings, card)]
    print_plan(found, card, advice, console())
    if gpu is None and nproc_per_node == 1:
        here = own_memory()
        say(f"here: {here.name}, {here.gib:.1f} GiB, has {'' if here.fits(found.peak) else 'no '}room for it")
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(as_json(found, card), encoding="utf-8")
        say(f"wrote {json}")
