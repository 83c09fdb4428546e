"""Components: the parts of a recipe that a config can swap, written as a dotted path and its arguments.

    optimizer:
      _component_: torch.optim.AdamW
      lr: 1e-5

An argument can be a component itself.
"""

import copy
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from difflib import get_close_matches
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

from prefkd.config.fields import flat
from prefkd.config.hints import describe, fits, shown
from prefkd.errors import PrefkdError, first_line, nearest

# What a callable raises about the arguments that it is given; a RuntimeError may be about the memory of a GPU.
_REFUSALS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError)

Component = Annotated[dict[str, Any], "component"]


def component(dotpath: str, supplied: Sequence[str] = (), **arguments: Any) -> Any:
    """A dataclass field for a component with a default.

    Args:
        dotpath: The default callable.
        supplied: Names of the arguments that the recipe itself passes, so that a config need not and may not.
        **arguments: The default arguments. They hold for the default callable only.
    """
    default = {"_component_": dotpath, **arguments}
    return field(default_factory=lambda: copy.deepcopy(default), metadata={"supplied": tuple(supplied)})


def components(*defaults: Component, supplied: Sequence[str] = (), settings: Mapping[str, Any] | None = None) -> Any:
    """A dataclass field for a list of components with a default.

    Args:
        *defaults: The default components.
        supplied: Names of the arguments that the recipe itself passes to each, so that a config need not and may not.
        settings: Keys, with their type hints, that may stand in each component but are the recipe's to read.
    """
    metadata = {"supplied": tuple(supplied), "settings": settings or {}}
    return field(default_factory=lambda: copy.deepcopy(list(defaults)), metadata=metadata)


def build(component: Component, *args: Any, **kwargs: Any) -> Any:
    """Call a component with its configured arguments and those given here. Components among its arguments come first.

    Raises:
        PrefkdError: If it cannot be imported or refuses its arguments.
    """
    call = bind(component)
    try:
        return call(*args, **kwargs)
    except _REFUSALS as error:
        raise PrefkdError(f"{component['_component_']} refuses its arguments: {first_line(error)}") from error
    except ImportError as error:  # loggers import their packages only now
        needed = error.name or first_line(error)
        raise PrefkdError(f"{component['_component_']} needs a package that is not installed: {needed}") from error


def bind(component: Component) -> partial[Any]:
    """A component with its configured arguments, to be called later, such as a loss."""
    arguments = {name: _built(value) for name, value in component.items() if name != "_component_"}
    return partial(import_dotpath(component["_component_"]), **arguments)


def import_dotpath(dotpath: str) -> Callable[..., Any]:
    """The callable at a dotted path such as torch.optim.AdamW.

    Raises:
        PrefkdError: If there is none; the message says which part of the path is at fault.
    """
    parts = dotpath.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise PrefkdError(f"{dotpath!r} is not a dotted path; write one such as torch.optim.AdamW")
    found, path = _member(None, "", parts[0]), parts[0]
    if found is None:
        raise PrefkdError(f"{dotpath}: there is no module {path}; install it, or check the spelling")
    for part in parts[1:]:
        inner = _member(found, path, part)
        if inner is None:
            close = get_close_matches(part, dir(found), n=1)  # all names of a module would fill the screen
            hint = f"did you mean {close[0]}?" if close else "check the spelling"
            raise PrefkdError(f"{dotpath}: {path} has no {part}; {hint}")
        found, path = inner, f"{path}.{part}"
    if not callable(found):
        raise PrefkdError(f"{dotpath} is a {type(found).__name__} and cannot be called; name a class or a function")
    return found


def source_file(dotpath: str) -> Path | None:
    """The file in which the callable at a dotted path is written, None where Python knows of none.

    Raises:
        PrefkdError: There is no such callable.
    """
    found = inspect.unwrap(import_dotpath(dotpath))
    try:
        file = inspect.getsourcefile(found)
    except TypeError:  # built in, or an object that can be called: the module that holds it stands for it
        file = getattr(sys.modules.get(dotpath.rpartition(".")[0]), "__file__", None)
    return Path(file) if file and Path(file).is_file() else None


def own_file(dotpath: str) -> Path | None:
    """The file of the user's own in which a component is written, None where it belongs to an installed package."""
    first = dotpath.partition(".")[0]
    if first == "prefkd" or first in sys.stdlib_module_names:
        return None
    try:
        file = source_file(dotpath)
    except PrefkdError:  # checking the config will say so
        return None
    return None if file is None or {"site-packages", "dist-packages"} & set(file.parts) else file


def component_problems(
    component: Component, supplied: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """What is wrong with a component, nested ones included, one line `key: problem; remedy` each.

    Args:
        supplied: Names of the arguments that the recipe itself passes.
        settings: Keys, with their type hints, that the recipe reads and does not pass.
    """
    settings = settings or {}
    for name, hint in settings.items():
        if name in component and not fits(component[name], hint):
            yield f"{name}: {shown(component[name])} is not {describe(hint)}"
    arguments = {name: value for name, value in component.items() if name not in ("_component_", *settings)}
    for key, nested in _nested(arguments):
        yield from (f"{key}.{line}" for line in component_problems(nested))
    dotpath = component.get("_component_")
    if not isinstance(dotpath, str):
        yield "_component_: missing; give the dotted path of a class or a function"
        return
    try:
        parameters = parameters_of(import_dotpath(dotpath))
    except PrefkdError as error:
        yield f"_component_: {error}"
        return
    for name, value in arguments.items():
        if name in supplied:
            yield f"{name}: the recipe itself passes it to {dotpath}; remove it"
        else:
            yield from _argument_problems(dotpath, parameters, name, value, settings)
    passes = f" (the recipe passes {', '.join(supplied)})" if supplied else ""
    for name, parameter in parameters.items():
        if name not in supplied and name not in arguments and _is_required(parameter):
            yield f"{name}: missing; {dotpath} needs it{passes}"


def infinite_arguments(component: Component) -> Iterator[str]:
    """The arguments that are infinite: no loss and no term can compute with them."""
    for key, value in flat(component):
        if isinstance(value, float) and math.isinf(value):
            yield f"{key}: {value} is not a number to compute with; use a finite one"


def swapped(component: Component, dotpath: str) -> Component:
    """Another callable in a component's place. It keeps those configured arguments that it has, the rest is dropped."""
    try:
        parameters = parameters_of(import_dotpath(dotpath))
    except PrefkdError:  # checking the config will say so
        return component | {"_component_": dotpath}
    kept = {name: value for name, value in component.items() if name in parameters or _is_open(parameters)}
    return {**kept, "_component_": dotpath}


def parameters_of(target: Callable[..., Any]) -> Mapping[str, Parameter]:
    """The parameters of a callable by name; one written in C that does not tell them counts as open to all."""
    try:
        return inspect.signature(target, eval_str=True).parameters
    except NameError:  # a hint whose names exist for type checkers only
        return inspect.signature(target).parameters
    except (TypeError, ValueError):
        return inspect.signature(lambda **arguments: arguments).parameters


def _argument_problems(
    dotpath: str, parameters: Mapping[str, Parameter], name: str, value: Any, settings: Mapping[str, Any]
) -> Iterator[str]:
    named = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    known = {known: parameter for known, parameter in parameters.items() if parameter.kind in named}
    if name not in known:
        if not _is_open(parameters):
            yield f"{name}: {dotpath} has no such argument{nearest(str(name), [*known, *settings])}"
    elif value != known[name].default and not list(_nested({name: value})):
        hint = known[name].annotation
        if not fits(value, hint):
            yield f"{name}: {shown(value)} is not {describe(hint)}, which {dotpath} asks for"


def _is_open(parameters: Mapping[str, Parameter]) -> bool:
    return any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())


def _is_required(parameter: Parameter) -> bool:
    variable = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return parameter.default is Parameter.empty and parameter.kind not in variable


def _nested(values: Mapping[str, Any]) -> Iterator[tuple[str, Component]]:
    """The components directly among some arguments, also inside lists and plain sections, with their keys."""
    for key, value in values.items():
        if isinstance(value, (list, tuple)):
            yield from _nested({f"{key}[{index}]": item for index, item in enumerate(value)})
        elif isinstance(value, dict) and "_component_" in value:
            yield key, value
        elif isinstance(value, dict):
            yield from _nested({f"{key}.{name}": item for name, item in value.items()})


def _built(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_built(item) for item in value)
    if not isinstance(value, dict):
        return value
    return build(value) if "_component_" in value else {name: _built(item) for name, item in value.items()}


def _member(owner: Any, path: str, name: str) -> Any:
    """The attribute or submodule of what lies at a path, or a module of its own where the path is empty; else None."""
    full = f"{path}.{name}" if path else name
    try:
        if owner is not None and hasattr(owner, name):
            return getattr(owner, name)
        return importlib.import_module(full) if owner is None or inspect.ismodule(owner) else None
    except ModuleNotFoundError as error:
        if error.name == full:
            return None
        raise PrefkdError(f"{full} cannot be imported: it needs {error.name}, which is not installed") from error
    except Exception as error:  # a module may raise anything while it is imported
        raise PrefkdError(f"{full} cannot be imported: {type(error).__name__}: {error}") from error
