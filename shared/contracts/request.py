"""Base class of all requests: the operation's name, its result type and its items.

Does not know the operations.
"""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import msgspec

from shared.contracts.result import ResultT
from shared.contracts.texts import TextInput


class Request(msgspec.Struct, Generic[ResultT], frozen=True):
    """A request to a backend, which answers it with a ResultT.

    To add an operation: a file here with its request and result, an entry in REQUESTS, a handler in
    shared.inference.service, and a request and answer format in a dialect.

    operation: the operation's name, and its path at a backend. items: the field with the inputs; the
    result has one entry per item. items_as_told: the name of that field in errors. runs_model: whether
    the model runs; False if the tokenizer is enough.
    """

    operation: ClassVar[str]
    result: ClassVar[type[Any]]
    items: ClassVar[str]
    items_as_told: ClassVar[str]
    runs_model: ClassVar[bool] = True

    model: str

    @property
    def texts(self) -> tuple[TextInput | tuple[str, str], ...]:
        """The inputs or documents."""
        texts: tuple[TextInput | tuple[str, str], ...] = getattr(self, self.items)
        return texts


AnyRequest: TypeAlias = Request[Any]
RequestT = TypeVar("RequestT", bound=AnyRequest)
