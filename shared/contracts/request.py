"""What all requests have: a name of the operation, a kind of result, and items.

Does not know the operations.
"""

from __future__ import annotations

from dataclasses import Field
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from shared.contracts.result import ResultT
from shared.contracts.texts import TextInput


class Request(Generic[ResultT]):
    """What a backend is asked, and ResultT is what it answers.

    A new operation is a file here with its request and result, an entry in REQUESTS, what answers it in
    shared.inference.service, and a dialect's words for it.

    operation: its name, the path at a backend. items: the field whose entries have one entry each of the
    result. items_as_told: what errors call that field. runs_model: whether an engine has to work.
    """

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # subclasses are dataclasses
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
