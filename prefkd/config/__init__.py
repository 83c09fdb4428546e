"""Configs: a YAML file and overrides become a recipe's dataclass, and dotted paths become the parts that it names."""

from prefkd.config.components import (
    Component,
    bind,
    build,
    component,
    component_problems,
    components,
    import_dotpath,
)
from prefkd.config.layers import read_layers, read_yaml, written_out
from prefkd.config.read import examine_config, load_config, save_config

__all__ = [
    "Component",
    "bind",
    "build",
    "component",
    "component_problems",
    "components",
    "examine_config",
    "import_dotpath",
    "load_config",
    "read_layers",
    "read_yaml",
    "save_config",
    "written_out",
]
