"""`prefkd cat`."""

import sys
from typing import Annotated

from tyro.conf import arg

from prefkd import catalog


def cat(name: Annotated[str, arg(metavar="NAME")], /) -> None:
    """Print a recipe or a config.

    For example:
        prefkd cat tis_dpo_distill
        prefkd cat demo/tis_dpo_distill

    Args:
        name: Name of a recipe or a config, as `prefkd ls` shows it.
    """
    sys.stdout.write(catalog.find_shipped(name).read_text(encoding="utf-8"))
