"""infra/*.bicep as a grammar reads them, also where there is no Bicep CLI: what they name exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import tree_sitter_bicep
from msgspec.structs import fields
from tree_sitter import Language, Node, Parser

from shared.settings import Settings
from tests.infra.bicep import INFRA, LEFT_AT_DEFAULT

FILES = sorted(INFRA.rglob("*.bicep"))
ENTRIES = [INFRA / "main.bicepparam", *sorted((INFRA / "variants").glob("*.bicepparam"))]
_PARSER = Parser(Language(tree_sitter_bicep.language()))


def _id_of(path: Path) -> str:
    return path.relative_to(INFRA).as_posix()


@cache
def _root(path: Path) -> Node:
    return _PARSER.parse(path.read_bytes()).root_node


def _all(node: Node, kind: str) -> Iterator[Node]:
    if node.type == kind:
        yield node
    for child in node.children:
        yield from _all(child, kind)


def _text(node: Node) -> str:
    assert node.text is not None
    return node.text.decode()


def _first(node: Node, kind: str) -> Node | None:
    return next((child for child in node.named_children if child.type == kind), None)


def _properties(node: Node) -> dict[str, Node]:
    """Of an object literal: name -> the property."""
    found = (child for child in node.named_children if child.type == "object_property")
    return {_text(each.named_children[0]): each for each in found}


def _parameters(path: Path) -> dict[str, bool]:
    """Name -> whether it must be given: it has no default and may not be null."""
    declared = {}
    for each in _all(_root(path), "parameter_declaration"):
        name, kind, *default = each.named_children
        declared[_text(name)] = not default and not _text(kind).endswith("?")
    return declared


def _modules(path: Path) -> Iterator[tuple[Path, set[str]]]:
    """Each module's file, and the parameters that it is given."""
    for each in _all(_root(path), "module_declaration"):
        where = _first(each, "string")
        assert where is not None
        body = next(node for node in _all(each, "object"))
        params = _properties(body).get("params")
        given = _first(params, "object") if params else None
        yield path.parent / _text(where).strip("'"), set(_properties(given) if given else ())


@pytest.mark.parametrize("path", FILES, ids=_id_of)
def test_a_grammar_takes_the_file(path: Path) -> None:
    """Without an error, and so that a bracket less would be one."""
    assert not _root(path).has_error
    assert _PARSER.parse(path.read_bytes().replace(b"{", b"", 1)).root_node.has_error


@pytest.mark.parametrize("path", FILES, ids=_id_of)
def test_modules_are_given_what_they_take(path: Path) -> None:
    """Every parameter that has no default, and none that the module's file does not declare."""
    for module, given in _modules(path):
        declared = _parameters(module)
        assert {name for name, is_required in declared.items() if is_required} <= given, module.name
        assert given <= set(declared), module.name


def test_every_file_is_a_module_of_another_one() -> None:
    """All but the one that composes them, and the one whose functions the others import."""
    used = {module.resolve() for path in FILES for module, _ in _modules(path)}
    assert {_id_of(path) for path in FILES if path not in used} == {"main.bicep", "shared.bicep"}


@pytest.mark.parametrize("path", ENTRIES, ids=_id_of)
def test_values_are_for_parameters_that_exist(path: Path) -> None:
    """And in main.bicepparam every parameter has one, so that azd's environment can set it."""
    given = set(re.findall(r"^param (\w+) =", path.read_text("utf-8"), re.MULTILINE))
    declared = _parameters(INFRA / "main.bicep")
    assert given <= set(declared)
    if path.parent == INFRA:
        assert given == set(declared)


def test_settings_are_those_that_the_code_reads() -> None:
    """Each is set in Bicep or left at its default on purpose; a name that is no setting stops an app."""
    names = {
        name for path in FILES for node in _all(_root(path), "object") for name in _properties(node)
    }
    ours = {name for name in names if name.startswith(("BLITZ_", "APPLICATIONINSIGHTS_"))}
    known = {field.name for field in fields(Settings)}
    assert {name.removeprefix("BLITZ_").lower() for name in ours} == known - LEFT_AT_DEFAULT


def test_identities_that_are_named_are_made() -> None:
    """Names follow from the owner's, so a wrong one is found by nobody but Azure."""
    (owners,) = (
        each
        for each in _all(_root(INFRA / "identities.bicep"), "variable_declaration")
        if _text(each.named_children[0]) == "owners"
    )
    made = {_text(each).strip("'") for each in _all(owners, "string")}
    named = set()
    for path in FILES:
        for call in _all(_root(path), "call_expression"):
            if found := re.match(r"identityNameOf\('(\w+)'", _text(call)):
                named.add(found[1])
    assert named
    assert named <= made
