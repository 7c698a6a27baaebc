"""Every public name is documented: a docstring with the fitting sections, and a place in ``docs/``.

The examples in the docstrings run as doctests in the same pytest call.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest

import compoff
from compoff import errors

DOCS = Path(__file__).parent.parent / "docs"
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md")))
CALLABLES = [name for name in compoff.__all__ if not name[0].isupper() and callable(getattr(compoff, name))]
CLASSES = [
    name
    for name in compoff.__all__
    if inspect.isclass(getattr(compoff, name)) and not issubclass(getattr(compoff, name), Exception)
]


PAGES = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]
# What the pages call by a name of their own: a head, a tail and so on.
METHODS = (compoff.Head, compoff.Tail, compoff.Wrapped, compoff.Remote, compoff.Server, compoff.Bottleneck)


def sections(docstring: str) -> set[str]:
    return set(re.findall(r"^(Args|Returns|Yields|Shapes|Raises|Examples|Source):", docstring, flags=re.MULTILINE))


@pytest.mark.parametrize("name", [*compoff.__all__, *errors.__all__])
def test_has_a_docstring_of_its_own(name: str) -> None:
    member = getattr(compoff, name) if name in compoff.__all__ else getattr(errors, name)
    assert (member.__doc__ or "").strip(), f"{name} has no docstring"


@pytest.mark.parametrize("name", CALLABLES)
def test_function_has_the_fitting_sections(name: str) -> None:
    function = getattr(compoff, name)
    signature = inspect.signature(function)
    wanted = {"Examples"}
    wanted |= {"Args"} if signature.parameters else set()
    wanted |= {"Returns"} if signature.return_annotation not in (None, "None") else set()
    assert wanted <= sections(inspect.getdoc(function) or ""), f"{name} lacks sections"


@pytest.mark.parametrize("name", CALLABLES)
def test_function_documents_every_argument(name: str) -> None:
    function = getattr(compoff, name)
    text = inspect.getdoc(function) or ""
    undocumented = [
        arg for arg in inspect.signature(function).parameters if not re.search(rf"^\s+{arg}\b.*:", text, re.M)
    ]
    assert undocumented == []


@pytest.mark.parametrize("name", CLASSES)
def test_class_has_an_example(name: str) -> None:
    assert "Examples" in sections(inspect.getdoc(getattr(compoff, name)) or "")


@pytest.mark.parametrize("name", CLASSES)
def test_public_methods_have_docstrings(name: str) -> None:
    methods = inspect.getmembers(
        getattr(compoff, name), lambda member: inspect.isfunction(member) or isinstance(member, property)
    )
    own = [(key, member) for key, member in methods if not key.startswith("_") and _is_ours(member)]
    assert [key for key, member in own if not member.__doc__] == []


def _is_ours(member: object) -> bool:
    function = member.fget if isinstance(member, property) else member
    return getattr(function, "__module__", "").startswith("compoff")


@pytest.mark.parametrize("name", [*compoff.__all__, *errors.__all__])
def test_is_mentioned_in_the_docs(name: str) -> None:
    assert re.search(rf"\b{name}\b", TEXT), f"{name} is nowhere in docs/"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    assert pages
    assert [page for page in pages if page not in navigation] == []


def snippets(page: Path) -> list[ast.Module]:
    """The Python of a page; of a diff, what stands after it."""
    found = re.findall(r"```(python|diff)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    after = [
        "\n".join(line[2:] for line in code.splitlines() if line[:1] != "-") if kind == "diff" else code
        for kind, code in found
    ]
    return [ast.parse(textwrap.dedent(code)) for code in after]


def named(node: ast.expr) -> object:
    """What an expression such as ``compoff.Head.load`` is; None for names of the reader's own."""
    if isinstance(node, ast.Name):
        return compoff if node.id == "compoff" else None
    owner = named(node.value) if isinstance(node, ast.Attribute) else None
    return getattr(owner, node.attr) if owner is not None and isinstance(node, ast.Attribute) else None


def takes(function: object, keywords: list[str]) -> bool:
    parameters = inspect.signature(function).parameters  # pyright: ignore[reportArgumentType]
    return all(word in parameters or "keywords" in parameters for word in keywords)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_use_names_and_arguments_that_there_are(page: Path) -> None:
    for snippet in snippets(page):
        for node in ast.walk(snippet):
            if isinstance(node, ast.Attribute):
                named(node)  # raises where compoff has no such name
            if isinstance(node, ast.Call):
                keywords = [one.arg for one in node.keywords if one.arg]
                function = named(node.func)
                method = node.func.attr if function is None and isinstance(node.func, ast.Attribute) else ""
                called = [function] if function is not None else [getattr(one, method, None) for one in METHODS]
                ours = [one for one in called if callable(one)]
                assert not ours or any(takes(one, keywords) for one in ours), ast.unparse(node)
