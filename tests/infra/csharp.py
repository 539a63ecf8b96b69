"""Evaluates the C# of API Management's policy expressions, as far as ours use the language.

A construct or a member that is not here is an error of the test, not a guess: a policy that starts to
use one brings it here. Knows no policy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from tree_sitter import Language, Node, Parser


class Thrown(Exception):
    """What C# would throw."""


class Token:
    """Newtonsoft's JToken over a JSON value. JSON's null is a token, what is missing is C#'s null."""

    _TYPES: Mapping[type, str] = {
        **{dict: "Object", list: "Array", str: "String", int: "Integer", float: "Float"},
        **{bool: "Boolean", type(None): "Null"},
    }

    def __init__(self, value: Any) -> None:
        self.value = value

    def get(self, key: str | int) -> Token | None:
        if isinstance(self.value, dict) and isinstance(key, str):
            return Token(self.value[key]) if key in self.value else None
        if isinstance(self.value, list) and isinstance(key, int) and key < len(self.value):
            return Token(self.value[key])
        raise Thrown("no such element")

    @property
    def type(self) -> str:
        return self._TYPES[type(self.value)]

    @classmethod
    def made(cls, parts: list[Any]) -> Token:
        """new JObject(new JProperty(name, value), ...)."""
        return cls({name: value.value if isinstance(value, Token) else value for name, value in parts})


class Body:
    """context.Request.Body of these bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def parse(self) -> Token:
        try:
            found = json.loads(self._data)
        except ValueError:
            raise Thrown("not JSON") from None
        if not isinstance(found, dict):
            raise Thrown("not a JObject")
        return Token(found)


class Headers(dict[str, str]):
    """Names in lower case."""


MEMBERS: Mapping[tuple[type, str], Callable[..., Any]] = {
    (str, "EndsWith"): lambda text, end: text.endswith(end),
    (str, "StartsWith"): lambda text, start: text.startswith(start),
    (str, "ToString"): lambda text: text,
    (int, "ToString"): str,
    (list, "Contains"): lambda items, item: item in items,
    (Headers, "ContainsKey"): lambda headers, name: name.lower() in headers,
    (Headers, "GetValueOrDefault"): lambda headers, name, default: headers.get(name.lower(), default),
    (dict, "ContainsKey"): lambda values, name: name in values,
    (Body, "As"): lambda body, preserveContent: _kept(body, preserveContent),
    (Token, "ToString"): lambda token: json.dumps(token.value),
}
"""Methods: of which type, called with the object first."""

PROPERTIES: Mapping[tuple[type, str], Callable[[Any], Any]] = {
    (str, "Length"): len,
    (Token, "Count"): lambda token: len(token.value),
    (Token, "Type"): lambda token: token.type,
}

STATIC: Mapping[str, Callable[..., Any]] = {
    "int.Parse": lambda text: _parsed(text),
    "JValue.CreateNull": lambda: Token(None),
}


def evaluate(expression: str, context: Any) -> Any:
    """The value of "@(...)" or "@{...}"; of anything else, itself. Raises Thrown.

    context: an object whose attributes are named as C# names them.
    """
    if not expression.startswith(("@(", "@{")):
        return expression
    is_block = expression.startswith("@{")
    body = expression[1:] if is_block else f"{{ return {expression[1:]}; }}"
    root = _parse(f"object f() {body}")
    return _Run(context).block(root)


def _parse(source: str) -> Node:
    grammar = import_module("tree_sitter_c_sharp")
    root = Parser(Language(grammar.language())).parse(source.encode()).root_node
    assert not root.has_error, source
    (block,) = (
        child for child in root.named_children[0].named_children[0].children if child.type == "block"
    )
    return block


def _kept(body: Body, preserve_content: bool) -> Token:
    # Without it the backend would get an empty body.
    assert preserve_content is True
    return body.parse()


def _parsed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise Thrown("not a number") from None


class _Returned(Exception):
    def __init__(self, value: Any) -> None:
        self.value = value


class _Run:
    def __init__(self, context: Any) -> None:
        self._names: dict[str, Any] = {"context": context}

    def block(self, block: Node) -> Any:
        try:
            self._do(block)
        except _Returned as returned:
            return returned.value
        raise AssertionError("all paths of an expression must end with return")

    def _do(self, node: Node) -> None:
        """One statement; a kind that has no method here is not known."""
        getattr(self, f"_{node.type}")(*node.named_children)

    def _block(self, *statements: Node) -> None:
        for statement in statements:
            self._do(statement)

    def _local_declaration_statement(self, declaration: Node) -> None:
        name, value = declaration.named_children[1].named_children
        self._names[_text(name)] = self.value(value)

    def _expression_statement(self, assignment: Node) -> None:
        assert assignment.type == "assignment_expression"
        name, value = assignment.named_children
        assert _text(name) in self._names
        self._names[_text(name)] = self.value(value)

    def _return_statement(self, value: Node) -> None:
        raise _Returned(self.value(value))

    def _if_statement(self, condition: Node, then: Node) -> None:
        if self._truth(condition):
            self._do(then)

    def _foreach_statement(self, _: Node, name: Node, items: Node, body: Node) -> None:
        for item in self.value(items):
            self._names[_text(name)] = item
            self._do(body)

    def _try_statement(self, attempt: Node, handler: Node) -> None:
        try:
            self._do(attempt)
        except Thrown:
            self._do(handler.named_children[-1])

    def value(self, node: Node) -> Any:
        """Of one expression; a kind that has no method here is not known."""
        if literal := _LITERALS.get(node.type):
            return literal(_text(node))
        if node.type == "identifier":
            return self._names[_text(node)]
        if node.type == "binary_expression":
            return self._binary(node)
        return getattr(self, f"_{node.type}")(*node.named_children)

    def _parenthesized_expression(self, inner: Node) -> Any:
        return self.value(inner)

    def _initializer_expression(self, *items: Node) -> list[Any]:
        return [self.value(item) for item in items]

    def _conditional_expression(self, condition: Node, yes: Node, no: Node) -> Any:
        return self.value(yes if self._truth(condition) else no)

    def _prefix_unary_expression(self, operand: Node) -> bool:
        # "!" is the only one of them that works on a truth.
        return not self._truth(operand)

    def _cast_expression(self, wanted: Node, operand: Node) -> Any:
        value = self.value(operand)
        if type(value) is not {"string": str, "int": int}[_text(wanted)]:
            raise Thrown(f"cannot be cast: {_text(operand)}")
        return value

    def _as_expression(self, operand: Node, wanted: Node) -> Any:
        assert _text(wanted) == "JArray"
        value = self.value(operand)
        return value if isinstance(value, Token) and value.type == "Array" else None

    def _element_access_expression(self, of: Node, keys: Node) -> Any:
        value, (key,) = self.value(of), self._arguments(keys)
        if isinstance(value, Token):
            return value.get(key)
        if key not in value:
            raise Thrown(f"no such key: {key}")
        return value[key]

    def _member_access_expression(self, of: Node, name: Node) -> Any:
        if _text(of) == "JTokenType":
            return _text(name)
        value = self._not_null(of)
        if known := PROPERTIES.get((type(value), _text(name))):
            return known(value)
        return getattr(value, _text(name))

    def _invocation_expression(self, function: Node, arguments: Node) -> Any:
        if known := STATIC.get(_text(function)):
            return known(*self._arguments(arguments))
        of, name = function.named_children
        value = self._not_null(of)
        method = _text(name.named_children[0]) if name.type == "generic_name" else _text(name)
        return MEMBERS[type(value), method](value, *self._arguments(arguments))

    def _object_creation_expression(self, kind: Node, arguments: Node) -> Any:
        given = list(self._arguments(arguments))
        if _text(kind) == "JProperty":
            name, value = given
            return name, value
        assert _text(kind) == "JObject"
        return Token.made(given)

    def _not_null(self, node: Node) -> Any:
        value = self.value(node)
        if value is None:
            raise Thrown(f"null: {_text(node)}")
        return value

    def _truth(self, node: Node) -> bool:
        value = self.value(node)
        assert isinstance(value, bool), _text(node)
        return value

    def _binary(self, node: Node) -> Any:
        left, right = node.named_children
        match _text(node.children[1]):
            case "&&":
                return self._truth(left) and self._truth(right)
            case "||":
                return self._truth(left) or self._truth(right)
            case "==":
                return self.value(left) == self.value(right)
            case "!=":
                return self.value(left) != self.value(right)
            case ">=":
                return self.value(left) >= self.value(right)
            case ">":
                return self.value(left) > self.value(right)
            case "+":
                first, second = self.value(left), self.value(right)
                assert isinstance(first, str)
                assert isinstance(second, str)
                return first + second
            case operator:
                raise AssertionError(f"no such operator here: {operator}")

    def _arguments(self, node: Node) -> Iterator[Any]:
        for argument in node.named_children:
            yield self.value(argument.named_children[-1])


def _text(node: Node) -> str:
    assert node.text is not None
    return node.text.decode()


_LITERALS: Mapping[str, Callable[[str], Any]] = {
    "string_literal": json.loads,
    "integer_literal": int,
    "boolean_literal": lambda text: text == "true",
    "null_literal": lambda text: None,
}
