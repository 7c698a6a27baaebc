"""The public face: every name in ``__all__`` is there, sorted, and the same for type checkers."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

import pytest

import compoff
from compoff import errors


def names_for_type_checkers() -> set[str]:
    """Names that ``compoff/__init__.py`` imports under ``if TYPE_CHECKING``."""
    tree = ast.parse(Path(compoff.__file__).read_text(encoding="utf-8"))
    guarded = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in guarded for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for statement in imports for alias in statement.names}


def test_names_are_sorted_and_unique() -> None:
    assert compoff.__all__ == sorted(set(compoff.__all__))


def test_type_checkers_see_the_same_names() -> None:
    modules = {name for name in names_for_type_checkers() if isinstance(getattr(compoff, name), ModuleType)}
    assert names_for_type_checkers() - modules == set(compoff.__all__)
    assert modules == {"codec", "coding", "errors"}


def test_dir_lists_every_name() -> None:
    assert set(compoff.__all__) <= set(dir(compoff))


@pytest.mark.parametrize("name", compoff.__all__)
def test_name_is_there_and_is_ours(name: str) -> None:
    assert getattr(compoff, name).__module__.startswith("compoff.")


@pytest.mark.parametrize("name", compoff.__all__)
def test_no_module_of_the_same_name_takes_its_place(name: str) -> None:
    # Importing compoff.NAME, a module, would set the attribute NAME of the package to that module.
    if importlib.util.find_spec(f"compoff.{name}"):
        importlib.import_module(f"compoff.{name}")
    assert not inspect.ismodule(getattr(compoff, name))
    assert not inspect.ismodule(getattr(compoff, name)), "the first use replaced it"


def test_unknown_name_says_so() -> None:
    with pytest.raises(AttributeError, match="no attribute 'warp'"):
        _ = compoff.warp


def test_version_is_the_installed_one() -> None:
    assert compoff.__version__ == importlib.metadata.version("compoff")


def test_every_error_is_exported_and_in_the_tree() -> None:
    classes = {name for name, member in vars(errors).items() if inspect.isclass(member)}
    assert sorted(classes) == errors.__all__
    assert all(issubclass(getattr(errors, name), errors.CompoffError) for name in classes)
    drawn = errors.__doc__ or ""
    assert not [name for name in classes if name not in drawn]
