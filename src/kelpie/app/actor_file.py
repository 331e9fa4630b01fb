"""Loads the program that `kelpie serve` hosts: a Python file or module with actor classes.

Runs foreign code, once, when the server starts. What is wrong with it is said with its line.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Final, cast

from kelpie.actors.api.definition import Actor, definition_of
from kelpie.actors.api.method import Method
from kelpie.core.errors import DefinitionError, InvalidFieldError, KelpieError
from kelpie.core.quoting import quote_text

FIELD: Final = "APP"
LIST_NAME: Final = "actors"

Kinds = tuple[type[Actor[Any]], ...]


def load_actor_classes(place: str, *, directory: Path) -> Kinds:
    """Return the actor classes of ``app.py``, ``package.module`` or ``module:attribute``.

    Without an attribute it is the list named ``actors``, or else every actor class with methods in
    the module's namespace, in the order of definition. A program sees the modules beside it.

    Args:
        place: The file, relative to ``directory``, or the module's name.
        directory: Where the command was given.

    Raises:
        InvalidFieldError: There is no such program, it does not load, it has no actor classes, or
            one of them cannot be hosted as it is written; the error names file and line.
    """
    kinds = _load(place, directory)
    for kind in kinds:
        try:
            definition_of(kind)
        except DefinitionError as error:
            raise _misdefined(kind, error) from error
    return kinds


def _misdefined(kind: type[Actor[Any]], error: DefinitionError) -> InvalidFieldError:
    """Return the error of a class that cannot be hosted, with the place of what is wrong in it."""
    method = vars(kind).get(str(error.fields.get("method", "")))
    try:
        if isinstance(method, Method):
            code = method.handler.__code__
            file, line = code.co_filename, code.co_firstlineno
        else:
            file = inspect.getsourcefile(kind) or ""
            line = inspect.getsourcelines(kind)[1]
    except (OSError, TypeError):  # a class that was made without a text
        return InvalidFieldError(FIELD, error.message)
    where = f"{Path(file).name}:{line}"
    return InvalidFieldError(FIELD, f"{where}: {error.message}", file=file, line=line)


def _load(place: str, directory: Path) -> Kinds:
    source, _, attribute = place.partition(":")
    is_file = source.endswith(".py") or "/" in source
    module = _load_file(directory / source) if is_file else _load_module(source, directory)
    if attribute:
        if not hasattr(module, attribute):
            raise InvalidFieldError(FIELD, f"{source} has no attribute {attribute!r}")
        return _classes_of(getattr(module, attribute), f"{source}:{attribute}")
    if hasattr(module, LIST_NAME):
        return _classes_of(getattr(module, LIST_NAME), f"{source}:{LIST_NAME}")
    found = tuple(dict.fromkeys(each for each in vars(module).values() if _is_hostable(each)))
    if not found:
        raise InvalidFieldError(FIELD, f"{source} defines no class of kelpie.Actor with methods")
    return found


def _is_hostable(value: object) -> bool:
    if not isinstance(value, type) or not issubclass(value, Actor):
        return False
    return any(
        isinstance(member, Method) for base in value.__mro__ for member in vars(base).values()
    )


def _classes_of(value: object, where: str) -> Kinds:
    members = cast("list[object]", value) if isinstance(value, list | tuple) else [value]
    for each in members:
        if not isinstance(each, type) or not issubclass(each, Actor):
            problem = f"{where} must be actor classes, and holds {each!r}"
            raise InvalidFieldError(FIELD, problem[:500])
    return tuple(cast("list[type[Actor[Any]]]", members))


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InvalidFieldError(FIELD, f"{path} does not exist")
    # A prefix of our own: a program called json.py must not stand in for the module json.
    spec = importlib.util.spec_from_file_location(f"kelpie_app_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InvalidFieldError(FIELD, f"{path} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    # Annotations are looked up in the module by name, so it has to be known before it runs.
    sys.modules[spec.name] = module
    with _Loading(path.name, path):
        spec.loader.exec_module(module)
    return module


def _load_module(name: str, directory: Path) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise InvalidFieldError(
            FIELD, f"{quote_text(name)} is neither a .py file nor a module's name"
        )
    sys.path.insert(0, str(directory))
    with _Loading(name, None):
        return importlib.import_module(name)


class _Loading:
    """Turns whatever a program raises while it loads into an error that names its line."""

    def __init__(self, name: str, path: Path | None) -> None:
        self._name = name
        self._path = path

    def __enter__(self) -> None:
        """Begin to load."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or not isinstance(error, Exception | SystemExit):
            return
        line = self._line_of(error, trace)
        where = f"{self._name}:{line}" if line else self._name
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        name = "" if isinstance(error, KelpieError) else f"{type(error).__name__}: "
        problem = f"{where} does not load: {name}{text}"
        raise InvalidFieldError(FIELD, problem, line=line or None) from error

    def _line_of(self, error: BaseException, trace: TracebackType | None) -> int:
        """Return the deepest line of the program itself; 0 when it is not on the way."""
        if isinstance(error, SyntaxError) and self._is_ours(error.filename or ""):
            return error.lineno or 0
        ours = [f for f in traceback.extract_tb(trace) if self._is_ours(f.filename)]
        return (ours[-1].lineno or 0) if ours else 0

    def _is_ours(self, filename: str) -> bool:
        if self._path is not None:
            return filename == str(self._path)
        return filename.endswith(f"{self._name.replace('.', '/')}.py")
