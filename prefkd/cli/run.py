"""`prefkd run`."""

from dataclasses import asdict, dataclass
from typing import Annotated

from tyro.conf import OmitArgPrefixes

from prefkd import catalog
from prefkd.cli.arguments import Config, Overrides, RecipeName, optional
from prefkd.cli.launch import launch, launch_processes
from prefkd.errors import PrefkdError


@dataclass(frozen=True)
class Torchrun:
    """With any of these options the recipe runs through torchrun. Without them it runs in this process, where a
    debugger works.

    Attributes:
        nproc_per_node: Number of processes on this machine, or gpu for one on each GPU.
        nnodes: Number of machines.
        node_rank: Number of this machine, counted from 0.
        rdzv_backend: How the machines find each other, for example c10d.
        rdzv_endpoint: Host and port where the machines meet.
        rdzv_id: Name of the job, the same on all machines.
        master_addr: Host of machine 0, if no rendezvous is given.
        master_port: Port on that host.
    """

    nproc_per_node: Annotated[str | None, optional("N")] = None
    nnodes: Annotated[str | None, optional("N")] = None
    node_rank: Annotated[int | None, optional("N")] = None
    rdzv_backend: Annotated[str | None, optional("NAME")] = None
    rdzv_endpoint: Annotated[str | None, optional("HOST:PORT")] = None
    rdzv_id: Annotated[str | None, optional("NAME")] = None
    master_addr: Annotated[str | None, optional("HOST")] = None
    master_port: Annotated[int | None, optional("PORT")] = None


def run(
    recipe: RecipeName,
    overrides: Overrides = (),
    /,
    *,
    config: Config = None,
    torchrun: OmitArgPrefixes[Torchrun] = Torchrun(),
) -> None:
    """Run a recipe with a config, on one device or many.

    For example:
        prefkd run tis_dpo_distill --config demo/tis_dpo_distill
        prefkd run ./mine.py --config ./mine.yaml optimizer.lr=1e-5 optimizer=torch.optim.SGD ~training.max_steps
        prefkd run tis_dpo_distill --config ./mine.yaml --nproc-per-node 8

    Args:
        recipe: Name of a recipe, or the path of your own. Without --config, a config that names its recipe.
        overrides: Settings that override the config; ~key removes one.
        config: Name of a config, or the path of your own.
    """
    recipe_path, config_path = catalog.find_run(recipe, config)
    options = {name: value for name, value in asdict(torchrun).items() if value is not None}
    for name in ("nproc_per_node", "nnodes"):
        count = str(options.get(name, 1))
        if count.lstrip("-").isdigit() and int(count) < 1:
            raise PrefkdError(f"--{name.replace('_', '-')}: {count} is too small; use 1 or more")
    if options:
        launch_processes(options, recipe_path, config_path, overrides)
    else:
        launch(recipe_path, config_path, overrides)
