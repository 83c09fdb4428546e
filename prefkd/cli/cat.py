"""`prefkd cat`."""

import sys
from typing import Annotated

from tyro.conf import arg

from prefkd import catalog


def cat(name: Annotated[str, arg(metavar="NAME")], /) -> None:
    """Print a recipe, a config or a pipeline.

    For example:
        prefkd cat tis_dpo_distill
        prefkd cat demo/tis_dpo_distill

    Args:
        name: Name of a recipe, a config or a pipeline, as `prefkd ls` shows it.
    """
    sys.stdout.write(catalog.find_shipped(name).read_text(encoding="utf-8"))
