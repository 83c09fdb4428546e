"""The code that a function of the user's own depends on: its module, and what that imports from its own folder."""

import ast
import importlib.util
import os
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from prefkd.files import sha256


def code_fingerprint(module: str, file: Path) -> dict[str, str]:
    """Name of a module, and of those that it and they import -> a hash of the file, wherever that lies.

    Modules count that lie below the folder of the first or belong to its package. Others are libraries, and are not
    looked into.
    """
    found: dict[str, str] = {}
    left = {module: file}
    while left:
        name, path = left.popitem()
        found[name] = sha256(path)
        for imported in _imports(name, path):
            own = _own_file(imported, module, file.parent)
            if own is not None and imported not in found:
                left[imported] = own
    return found


def file_fingerprints(settings: Any) -> dict[str, str]:
    """Path of each file that settings name -> a hash of it."""
    if isinstance(settings, str):
        return {settings: sha256(Path(settings))} if os.path.isfile(settings) else {}
    inner = settings.values() if isinstance(settings, dict) else settings if isinstance(settings, list) else ()
    return {path: digest for value in inner for path, digest in file_fingerprints(value).items()}


def _imports(module: str, file: Path) -> Iterator[str]:
    """What a module may import: modules, the packages around them, and names in them that are not modules."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            yield from accumulate(name.split("."), "{}.{}".format)


def _own_file(name: str, module: str, folder: Path) -> Path | None:
    """The file of a module if it is the user's own, not of a library."""
    top = name.partition(".")[0]
    if top != module.partition(".")[0]:
        spec = importlib.util.find_spec(top)  # imports nothing, unlike that of a module in a package
        places = [*(spec.submodule_search_locations or ()), spec.origin or ""] if spec else []
        if not any(_is_below(Path(place), folder) for place in places):
            return None
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:  # a name in a module that is no package
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _is_below(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder) and "site-packages" not in path.relative_to(folder).parts
