"""`prefkd cat`."""

import sys
from typing import Annotated

from tyro.conf import arg

from prefkd import catalog


def cat(name: Annotated[str, arg(metavar="NAME")], /) -> None:
    """Print a recipe, a config or a pipeline. A config is merged with its base.

    For example:
        prefkd cat tis_dpo_distill
        prefkd cat demo/tis_dpo_distill

    Args:
        name: Name of a recipe, a config or a pipeline, as `prefkd ls` shows it.
    """
    path = catalog.find_shipped(name)
    if path.suffix == ".py":
        sys.stdout.write(path.read_text(encoding="utf-8"))
        return
    from prefkd.config import written_out

    sys.stdout.write(written_out(path))
