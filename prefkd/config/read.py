"""From a YAML file and key=value overrides to a recipe's dataclass, every mistake reported at once.

The file is laid over the dataclass's defaults, the overrides over both. A component (see prefkd/config/components.py)
that the file writes with its `_component_` stands for itself; without it, its keys change the default's arguments.

A dataclass may define `problems(self) -> Iterator[Problem | str]` for checks between its fields and of files. A string
has the form `field: problem; remedy`; a problem about a file or a folder is a `Problem` that names it. They are asked
for where all values of the section are sound.
"""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    InterpolationToMissingValueError,
    InterpolationValidationError,
    OmegaConfBaseException,
)

from prefkd import catalog
from prefkd.config.components import Component, component_problems, swapped
from prefkd.config.fields import flat
from prefkd.config.hints import describe, is_mistaken, listed_sections, members, named_sections, shown
from prefkd.config.layers import overlaid, read_layers
from prefkd.errors import ConfigError, PrefkdError, Problem, explain, first_line, nearest

ConfigType = TypeVar("ConfigType")
# What OmegaConf says of an interpolation, and how prefkd says it.
_PLAIN = {
    r"Interpolation key '(.*)' not found": r"there is no key \1; check the spelling",
    r"Error resolving key '(.*)'": r"there is no key \1; check the spelling",
    r"(Recursive interpolation|Interpolation to parent node) detected": "it leads back to itself; give a value",
    r"\"?Environment variable '(.*)' not found\"?": r"the environment has no variable \1; set it, or give a value",
    r"Unsupported interpolation type (.*)": r"there is no ${\1:...}; use shipped or oc.env",
}
_KEY = r"[\w-]+(?:\.[\w-]+)*"  # items of a list are keys as well: betas.0


@dataclass
class _Findings:
    """The problems found so far, and the keys whose values cannot be used."""

    problems: list[Problem] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def add(self, key: str, problem: str) -> None:
        self.problems.append(Problem(key, problem))
        self.broken.append(key)

    def touch(self, key: str) -> bool:
        """Whether the value at a key, or one below it, is unusable. The empty key is the whole config."""
        return any(not key or broken == key or broken.startswith((f"{key}.", f"{key}[")) for broken in self.broken)


def load_config(
    config_class: type[ConfigType], path: Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> ConfigType:
    """Read a config.

    Args:
        config_class: The recipe's dataclass; it may hold further dataclasses, each a section of the file, and
            dictionaries of them, whose keys the file chooses.
        path: The YAML file, or what it holds.
        overrides: `a.b=value` sets a key, `~a.b` removes one; `optimizer=torch.optim.SGD` puts another callable in a
            component's place and keeps those arguments that it has.

    Raises:
        ConfigError: With all problems, one line each.
    """
    config, problems = examine_config(config_class, path, overrides)
    if problems:
        raise ConfigError(problems)
    return config


def examine_config(
    config_class: type[ConfigType], path: Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> tuple[ConfigType, list[Problem]]:
    """Read a config as `load_config` does, and return it together with the problems of its sound values.

    These are problems of components and what the sections themselves say, a missing file for instance, which may be
    there later.

    Raises:
        ConfigError: With all problems, if there are values from which no config can be made.
    """
    OmegaConf.register_resolver("shipped", catalog.shipped_file, replace=True)
    try:
        config = OmegaConf.structured(config_class)
    except (OmegaConfBaseException, NameError) as error:  # of a recipe of the user's own
        key = f"{error.full_key}: " if isinstance(error, OmegaConfBaseException) and error.full_key else ""
        problem = f"{key}{first_line(error)}; change its type or its default"
        raise PrefkdError(f"the Config of the recipe: {problem}") from error
    written = read_layers(path) if isinstance(path, Path) else dict(path)
    if "recipe" not in _hints(config):
        written.pop("recipe", None)
    values = _plain(overlaid(_container(config), written))
    found = _Findings()
    component_keys = set(_component_keys(config_class))
    for override in overrides:
        _apply(override, values, component_keys, found)
    _fill(config, values, "", found)
    _resolve(config, "", found)
    is_sound = not found.problems
    _ask(config, "", found)
    if not is_sound:
        raise ConfigError(found.problems)
    return OmegaConf.to_object(config), found.problems  # pyright: ignore[reportReturnType]


def save_config(config: Any, path: Path) -> None:
    """Write a config as YAML that `load_config` reads back as the same values."""
    OmegaConf.save(OmegaConf.create(_plain(asdict(config))), path)


def _plain(value: Any) -> Any:
    """Only types that YAML has."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _apply(override: str, values: dict[Any, Any], component_keys: Set[str], found: _Findings) -> None:
    removal = re.fullmatch(f"~({_KEY})", override)
    setting = re.fullmatch(f"({_KEY})=(.*)", override, re.DOTALL)
    if removal:
        _remove(removal[1], values, found)
    elif setting:
        _set(setting[1], setting[2], values, component_keys, found)
    else:
        found.add(override, "an override has the form key=value, or ~key to remove a key")


def _remove(key: str, values: dict[Any, Any], found: _Findings) -> None:
    *parents, last = key.split(".")
    section = reduce(_item, parents, values)
    if isinstance(section, dict) and last in section:
        del section[last]
    else:
        known = nearest(last, map(str, section)) if isinstance(section, dict) else ""
        found.add(key, f"there is no such key to remove{known}")


def _set(key: str, text: str, values: dict[Any, Any], component_keys: Set[str], found: _Findings) -> None:
    try:
        value = _container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except (yaml.YAMLError, OmegaConfBaseException):
        found.add(key, f"{text!r} is not a YAML value; look for a bracket or a quote that is not closed")
        return
    except ValueError:  # a number of too many digits, or bytes that are not UTF-8, which a name may hold
        found.add(key, f"{shown(text)} cannot be read; write a shorter number, or a name in UTF-8")
        return
    *parents, last = key.split(".")
    holder: Any = values
    try:
        for name in parents:
            if not isinstance(_item(holder, name), (dict, list)):
                _put(holder, name, {})
            holder = _item(holder, name)
        old = _item(holder, last)
        in_place = isinstance(old, dict) and "_component_" in old
        if isinstance(value, str) and (in_place or key in component_keys):
            value = swapped(old if in_place else {}, value)
        _put(holder, last, value)
    except (IndexError, ValueError):
        found.add(key, "there is no such item in the list; items are counted from 0")


def _item(holder: Any, name: str) -> Any:
    """What a section has under a key, or a list at a place; None if there is nothing."""
    if isinstance(holder, list):
        return holder[int(name)] if name.isdecimal() and int(name) < len(holder) else None
    return holder.get(name) if isinstance(holder, dict) else None


def _put(holder: Any, name: str, value: Any) -> None:
    holder[int(name) if isinstance(holder, list) else name] = value


def _fill(config: DictConfig, values: Mapping[Any, Any], key: str, found: _Findings) -> None:
    """Put values into a section, each converted to the type of its field."""
    hints = _hints(config)
    for name, value in values.items():
        path = _join(key, name)
        if name not in hints:
            found.problems.append(Problem(path, f"unknown key{nearest(str(name), hints)}"))
            continue
        section = next((member for member in members(hints[name]) if is_dataclass(member)), None)
        if section is not None and value == "???":  # a section without a default: its own fields say what is missing
            value = {}
        if section is not None and isinstance(value, Mapping):
            if not isinstance(OmegaConf.select(config, name), DictConfig):
                config[name] = OmegaConf.structured(section)
            _fill(config[name], value, path, found)
            continue
        named = named_sections(hints[name])
        if named is not None and isinstance(value, Mapping):
            _fill_named(config, name, named, value, path, found)
            continue
        listed = listed_sections(hints[name])
        if listed is not None and isinstance(value, Sequence) and not isinstance(value, str):
            _fill_listed(config, name, listed, value, path, found)
            continue
        try:
            OmegaConf.update(config, name, value, merge=False)
            is_wrong = is_mistaken(value, hints[name])
        except OmegaConfBaseException:
            is_wrong = True
        if is_wrong:
            found.add(path, f"{shown(value)} is not {describe(hints[name])}")
        elif isinstance(value, str) and not value.strip() and not _may_be_blank(config, name, hints[name]):
            found.add(path, f"{value!r} is blank; give {describe(hints[name])}")


def _fill_named(
    config: DictConfig, name: str, section: type, values: Mapping[Any, Any], path: str, found: _Findings
) -> None:
    """Put values into sections of one kind that the file names, each checked as a section is."""
    config[name] = {}
    for item, settings in values.items():
        if not isinstance(settings, Mapping):
            found.add(_join(path, item), f"{settings!r} is not a section of keys and values")
            continue
        config[name][item] = OmegaConf.structured(section)
        _fill(config[name][item], settings, _join(path, item), found)


def _fill_listed(
    config: DictConfig, name: str, section: type, values: Sequence[Any], path: str, found: _Findings
) -> None:
    """Put values into a list of sections of one kind, each checked as a section is."""
    config[name] = []
    for index, settings in enumerate(values):
        config[name].append(OmegaConf.structured(section))
        if isinstance(settings, Mapping):
            _fill(config[name][-1], settings, f"{path}[{index}]", found)
        else:
            found.add(f"{path}[{index}]", f"{settings!r} is not a section of keys and values")


def _resolve(config: Any, key: str, found: _Findings) -> None:
    """Find values that are missing, and interpolations that lead nowhere."""
    hints = _hints(config)
    in_list = not isinstance(config, DictConfig)
    names: Any = range(len(config)) if in_list else config
    for name in names:
        path = f"{key}[{name}]" if in_list else _join(key, name)
        if path in found.broken:
            continue
        if OmegaConf.is_missing(config, name):
            if not found.touch(path):
                found.add(path, f"missing; give {describe(hints.get(name, Any))}")
            continue
        try:
            value = config[name]
        except InterpolationToMissingValueError:
            found.broken.append(path)  # the missing value itself is reported where it stands
        except InterpolationValidationError:
            wanted = describe(hints.get(name, Any))
            found.add(path, f"{_container(config)[name]!r} leads to a value that is not {wanted}")
        except OmegaConfBaseException as error:
            found.add(path, f"{_container(config)[name]!r} cannot be resolved: {_reason(error)}")
        else:
            if OmegaConf.is_config(value) and not OmegaConf.is_interpolation(config, name):
                _resolve(value, path, found)
            elif value != value:
                found.add(path, "nan is not a number; give one")
            elif isinstance(value, (str, Path)) and "\0" in str(value):
                found.add(path, f"{str(value)!r} holds the character 0, which no name has; remove it")


def _ask(config: DictConfig, key: str, found: _Findings) -> None:
    """Check the components of a section and of those in it, and ask each sound section for its own problems."""
    hints = _hints(config)
    section: Any = OmegaConf.get_type(config)
    for part in fields(section):
        path = _join(key, part.name)
        unusable = path in found.broken or OmegaConf.is_missing(config, part.name)
        value = None if unusable else config[part.name]
        if isinstance(value, ListConfig) and list[Component] in members(hints[part.name]) and not found.touch(path):
            for index, item in enumerate(_container(value, resolve=True)):
                lines = component_problems(item, part.metadata.get("supplied", ()), part.metadata.get("settings"))
                found.problems += (Problem.of(line).under(f"{path}[{index}]") for line in lines)
        if isinstance(value, ListConfig) and listed_sections(hints[part.name]) is not None:
            for index, item in enumerate(value):
                _ask(item, f"{path}[{index}]", found)
        if not isinstance(value, DictConfig):
            continue
        if is_dataclass(OmegaConf.get_type(value)):
            _ask(value, path, found)
        elif named_sections(hints[part.name]) is not None:
            for item in value:
                _ask(value[item], _join(path, item), found)
        elif not found.touch(path) and (_is_component(hints[part.name]) or "_component_" in value):
            lines = component_problems(_container(value, resolve=True), part.metadata.get("supplied", ()))
            found.problems += (Problem.of(line).under(path) for line in lines)
    if hasattr(section, "problems") and not found.touch(key):
        settings: Any = OmegaConf.to_object(config)
        try:
            found.problems += (Problem.of(line).under(key) for line in settings.problems() or ())
        except OSError as error:  # a name that is too long, or a folder that may not be looked into
            found.problems.append(Problem(_culprit(settings, error), explain(error) or str(error)).under(key))


def _container(config: Any, *, resolve: bool = False) -> Any:
    """Plain dicts and lists; interpolations stay as they are written unless they are to be resolved."""
    return OmegaConf.to_container(config, resolve=resolve)


def _hints(config: Any) -> dict[Any, Any]:
    section = OmegaConf.get_type(config)
    return get_type_hints(section, include_extras=True) if is_dataclass(section) else {}


def _component_keys(section: Any, key: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(section, include_extras=True).items():
        if _is_component(hint):
            yield _join(key, name)
        for member in members(hint):
            if is_dataclass(member):
                yield from _component_keys(member, _join(key, name))


def _is_component(hint: Any) -> bool:
    return Component in members(hint)


def _may_be_blank(config: DictConfig, name: Any, hint: Any) -> bool:
    """Whether a setting may be an empty text, as one that is so by default.

    Names and paths may not: OmegaConf would take an empty path for the current folder.
    """
    if not {str, Path} & set(members(hint)):
        return True
    section: Any = OmegaConf.get_type(config)
    default = next(part.default for part in fields(section) if part.name == name)
    return isinstance(default, str) and not default.strip()


def _culprit(settings: Any, error: OSError) -> str:
    """The key of the setting that names the file of an error, empty if none does."""
    named = {key: str(value) for key, value in flat(asdict(settings)) if isinstance(value, (str, Path))}
    return next((key for key, name in named.items() if name and str(error.filename).startswith(name)), "")


def _join(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _reason(error: OmegaConfBaseException) -> str:
    """Why an interpolation cannot be resolved, in plain words where OmegaConf has its own."""
    reason = re.sub(r"^\w+ (raised )?while resolving interpolation: ", "", first_line(error))
    for pattern, plain in _PLAIN.items():
        reason = re.sub(pattern, plain, reason)
    return reason
