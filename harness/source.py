"""An edited script makes other runs: a digest of its source, and of what it imports of its folder,
is part of their names."""

from __future__ import annotations

import ast
import gc
import hashlib
import json
import sys
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path


@cache
def ours() -> dict[str, str]:
    """The digests of common.py and of this collection's scripts as they came: the names of their
    runs do not depend on their source. A test compares them, and says what belongs here."""
    return json.loads(Path(__file__).with_name("ours.json").read_text())


def source_digest(*files: Path) -> str:
    """Six digits of the SHA-256 of what is written in `files`."""
    written = b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(written.replace(b"\r\n", b"\n")).hexdigest()[:6]


@cache
def source_of(script: Path) -> str:
    """The `source_digest` of a script and of the files beside it that it imports, without those
    that are of this collection and as they came; empty where all are."""
    files = [script, *sorted(imported(script) - {script})]
    own = [file for file in files if ours().get(file.name) != source_digest(file)]
    return source_digest(*own) if own else ""


def imported(script: Path) -> set[Path]:
    """The files in a script's folder that it imports, and those that these import in turn, but for
    harness/ and report/."""
    found, left = set(), [script]
    while left:
        file, new = left.pop(), set()
        for level, names in names_imported(file).items():
            # a relative import is from the file's own folder on, any other from the script's
            folder = file.parents[level - 1] if level else script.parent
            new |= files_of(names, folder) - found
        found |= new
        left += new
    return found


@contextmanager
def uncollected():
    """Without garbage collection. What it calls may parse, too, as the formatting of an exception
    does, and inside another parsing CPython 3.11 makes a SystemError of that (its gh-106905)."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def names_imported(file: Path) -> dict[int, set[str]]:
    """Every module that an import in `file` may mean, wherever it stands, by the number of dots
    before it."""
    names = {}
    try:
        with uncollected():
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # of a module that nothing imports in truth
        return names
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.setdefault(0, set()).update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = [node.module] if node.module else []
            members = [".".join([*start, alias.name]) for alias in node.names]
            names.setdefault(node.level, set()).update(start + members)
    return names


def files_of(modules: set[str], folder: Path) -> set[Path]:
    """The files of those `modules` that lie in `folder`, which holds no installed packages."""
    found = set()
    if "site-packages" in folder.parts:  # a notebook's process begins there
        return found
    for name in modules:
        parts = name.split(".")
        if parts[0] in ("harness", "report"):
            continue
        for length in range(1, len(parts) + 1):
            path = folder.joinpath(*parts[:length])
            found |= {path.with_name(f"{path.name}.py"), path / "__init__.py"}
    return {path for path in found if path.is_file()}


def script_of(function) -> Path:
    """The file in which a function was written, whatever it is wrapped in."""
    while isinstance(function, partial):
        function = function.func
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    if hasattr(function, "__code__"):
        return Path(function.__code__.co_filename)
    # an object that can be called and is no function: where the process began
    return Path(getattr(sys.modules["__main__"], "__file__", "notebook"))
