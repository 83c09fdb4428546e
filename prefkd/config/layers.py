"""A config file as it is written: keys of its own, laid over those of a base, or several configs in one file.

    recipe: sft                 the recipe that it is for
    base: demo/sft              another config, over which this one is laid; it has no base itself
    training: {max_steps: 100}

A file of several configs gives each a name, `FILE/NAME`, and may give them values in common, which stand in for
`${values.KEY}` in all of them and in their bases:

    values: {teacher: models/large, student: models/small}
    configs:
      sft: {base: bases/sft}
      dpo: {base: bases/dpo, optimizer: {lr: 2e-6}}
"""

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import GrammarParseError, KeyValidationError, OmegaConfBaseException, UnsupportedValueType

from prefkd import catalog
from prefkd.config.hints import shown
from prefkd.errors import ConfigError, PrefkdError, first_line, nearest

_VALUE = re.compile(r"\$\{values\.([\w.-]+)\}")


def read_layers(path: Path) -> dict[Any, Any]:
    """The keys of a config laid over its base, without `base`.

    Args:
        path: The file, or `FILE/NAME` of one of several configs in a file.

    Raises:
        ConfigError: If a file cannot be read, or the base is not there, is for another recipe or has a base itself.
    """
    found, values = _own_keys(path)
    base = found.pop("base", None)
    if base is not None and not (isinstance(base, str) and base.strip()):
        problem = f"base: {shown(base)} is not the name of a config; write one that `prefkd ls` lists"
        raise ConfigError([f"{path}: {problem}"])
    if base is not None:
        under = _base_keys(base, path)
        if "stages" in under and "recipe" in found:
            problem = f"base: {base} is a pipeline, and this is for recipe {found['recipe']}; name another base"
            raise ConfigError([f"{path}: {problem}"])
        recipe = under.get("recipe")
        if found.get("recipe", recipe) != recipe:
            problem = f"base: {base} is for recipe {recipe}, and this is for {found['recipe']}; name another base"
            raise ConfigError([f"{path}: {problem}"])
        found = overlaid(under, found)
    if "stages" in found:  # a pipeline has values itself
        return found | ({"values": overlaid(found.get("values", {}), values)} if values else {})
    return _filled(found, values, path) if values or base is not None else found


def written_out(path: Path) -> str:
    """The text of a config that needs no other file: as it stands, or the header of its file over its merged keys."""
    if path.is_file() and "base" not in read_yaml(path):
        return path.read_text(encoding="utf-8")
    found = read_layers(path)
    return f"{catalog.header_of(path)}\n{as_yaml(found)}"


def laid_over_base(base: str, own: dict[str, Any], values: dict[str, Any]) -> dict[Any, Any]:
    """Keys over those of a shipped base, with values in the place of `${values.KEY}`."""
    return _filled(overlaid(_base_keys(base, Path(base)), own), values, Path(base))


def as_yaml(keys: dict[Any, Any]) -> str:
    """The keys of a config as YAML, its purpose first, a blank line between its sections."""
    first = {key: keys[key] for key in ("recipe", "output_dir", "values") if key in keys}
    sections = [first, *({key: value} for key, value in keys.items() if key not in first)]
    return "\n".join(
        yaml.dump(part, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120) for part in sections
    )


def overlaid(base: Any, over: Any) -> Any:
    """Values laid over others, section by section; a component with its `_component_` takes the whole place."""
    if not (isinstance(base, dict) and isinstance(over, dict)) or "_component_" in over:
        return over
    return base | {key: overlaid(base.get(key), value) for key, value in over.items()}


def read_yaml(path: Path) -> dict[Any, Any]:
    """The keys of a YAML file, interpolations as they are written.

    Raises:
        ConfigError: If the file cannot be read or holds no keys.
    """
    try:
        loaded = OmegaConf.load(path)
    except GrammarParseError as error:
        raise ConfigError([f"{path}: {error.full_key}: its ${{...}} is malformed; write ${{key}}"]) from error
    except KeyValidationError as error:
        raise ConfigError([f"{path}: {_at(error)}a key is empty; give it a name, or quote it"]) from error
    except UnsupportedValueType as error:
        raise ConfigError([f"{path}: {_at(error)}{first_line(error).lower()}; write a text or a list"]) from error
    except OmegaConfBaseException as error:
        raise ConfigError([f"{path}: {first_line(error)}"]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError([catalog.unreadable(path, error)]) from error
    except OSError as error:
        if error.errno is not None:
            raise
        loaded = ListConfig([])  # a single value
    found: Any = OmegaConf.to_container(loaded)
    # OmegaConf makes a key of a mere text, which must not be shown: it may be a secret, from a file .env say.
    if not isinstance(found, dict) or ([*found.values()] == [None] and _is_text(path)):
        raise ConfigError([f"{path}: holds no keys; write `key: value` lines"])
    return found


def _is_text(path: Path) -> bool:
    return isinstance(catalog.parse(path.read_text(encoding="utf-8")), str)


def _at(error: OmegaConfBaseException) -> str:
    return f"{error.full_key}: " if error.full_key else ""


def _base_keys(name: str, path: Path) -> dict[Any, Any]:
    try:
        base = catalog.find_base(name)
    except PrefkdError as error:
        raise ConfigError([f"{path}: base: {error}"]) from error
    under, _ = _own_keys(base)
    if "base" in under:
        problem = f"base: {name} has a base itself, {under['base']}; name that one, or write {name} out"
        raise ConfigError([f"{path}: {problem}"])
    return under


def _own_keys(path: Path) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """What a config writes itself, and the values that its file gives to all of its configs."""
    if path.exists():
        found = read_yaml(path)
        if "configs" in found:
            some = next(iter(_held(found, path)))
            raise ConfigError([f"{path}: holds several configs; name one of them, as in {path}/{some}"])
        return found, {}
    held = read_yaml(path.parent)
    configs, values = _held(held, path.parent), held.get("values") or {}
    if path.name not in configs:
        raise ConfigError([f"{path.parent}: holds no config {path.name}{nearest(path.name, configs)}"])
    for key, value in {f"configs.{path.name}": configs[path.name], "values": values}.items():
        if not isinstance(value, dict):
            raise ConfigError([f"{path.parent}: {key}: {shown(value)} is not a section of keys and values"])
    for key in held:
        if key not in ("values", "configs"):
            raise ConfigError(
                [f"{path.parent}: {key}: conflicts with configs; move it into each of them, or into their base"]
            )
    return configs[path.name], values


def _held(keys: dict[Any, Any], path: Path) -> dict[str, Any]:
    """The configs in a file of several, by name."""
    configs = keys.get("configs")
    if not isinstance(configs, dict) or not configs:
        raise ConfigError([f"{path}: configs: {shown(configs)} is not a section; give each config a name and keys"])
    return {str(name): keys for name, keys in configs.items()}


def _filled(found: Any, values: dict[Any, Any], path: Path) -> Any:
    """What is written, with values in the place of `${values.KEY}`."""
    if isinstance(found, dict):
        return {key: _filled(value, values, path) for key, value in found.items()}
    if isinstance(found, list):
        return [_filled(value, values, path) for value in found]
    if not isinstance(found, str):
        return found
    whole = _VALUE.fullmatch(found)
    return _value(whole, values, path) if whole else _VALUE.sub(lambda key: str(_value(key, values, path)), found)


def _value(key: re.Match[str], values: Any, path: Path) -> Any:
    for name in key[1].split("."):
        if not isinstance(values, dict) or name not in values:
            known = nearest(name, map(str, values)) if isinstance(values, dict) and values else ""
            raise ConfigError([f"{path}: values.{key[1]}: missing, and its base asks for it{known}"])
        values = values[name]
    return values


class _Dumper(yaml.SafeDumper):
    """Writes lists a step further in than their key."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, indentless=False)
