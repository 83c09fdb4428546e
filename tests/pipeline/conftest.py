"""The command line of tests/cli, for pipelines."""

from tests.cli.conftest import folder, prefkd

__all__ = ["folder", "prefkd"]
