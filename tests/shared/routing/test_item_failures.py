"""Items that a model fails at fail alone, unless the failure is not the item's."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from shared.contracts import EmbedRequest, EmbedResult, Timings
from shared.errors import BlitzError, InputTooLong, InvalidInput, NotFinite, Overloaded, Unavailable
from shared.routing.item_failures import embed_around_failures

pytestmark = pytest.mark.anyio


class Model:
    """Fails at the first text that begins with "bad"; a row holds the text's length."""

    def __init__(self, error: BlitzError | None = None, fails_at: str = "bad") -> None:
        self.error = error
        self.fails_at = fails_at
        self.calls: list[tuple[object, ...]] = []

    async def run(self, request: EmbedRequest) -> EmbedResult:
        self.calls.append(request.inputs)
        for index, text in enumerate(request.inputs):
            if str(text).startswith(self.fails_at):
                raise self.error or NotFinite(f"NaN for input[{index}]", field=f"input[{index}]")
        rows = np.array([[len(text)] for text in request.inputs], np.float32)
        counts = tuple(len(text) for text in request.inputs)
        cut = tuple(n for n, text in enumerate(request.inputs) if str(text).startswith("long"))
        return EmbedResult(rows, counts, "m", "r1", Timings(1.0, 2.0, 3.0), cut=cut)


async def test_the_result_is_of_all_inputs_in_their_order() -> None:
    """A failed one has zeros, no tokens, and its own number in the message."""
    model = Model()
    asked = EmbedRequest("m", ("a", "long b", "bad", "ccc", "bad too", "long dd"))
    result = await embed_around_failures(model.run, asked, ".")
    assert result.vectors.tolist() == [[1], [6], [0], [3], [0], [7]]
    assert result.token_counts == (1, 6, 0, 3, 0, 7)
    assert result.cut == (1, 5)
    assert result.failed == ((2, "NaN for input[2]"), (4, "NaN for input[4]"))
    answered = len(model.calls) - 2
    assert result.timings == Timings(1.0 * answered, 2.0 * answered, 3.0 * answered)


async def test_if_all_fail_another_text_tells_whether_the_model_does() -> None:
    """A model that fails at any text is at fault itself."""
    asked = EmbedRequest("m", ("bad", "bad"))
    result = await embed_around_failures(Model().run, asked, ".")
    assert (result.vectors.tolist(), len(result.failed), result.token_counts) == ([[0], [0]], 2, (0, 0))
    with pytest.raises(NotFinite):
        await embed_around_failures(Model(fails_at="").run, asked, ".")


NOT_THE_ITEMS = [
    Overloaded("no room", field="input[0]"),
    Unavailable("stopping", field="input[0]"),
    InvalidInput("no such prompt", field="prompt_name"),
    InvalidInput("no field"),
    InputTooLong("a number that was not sent", field="input[2]"),
]


@pytest.mark.parametrize("error", NOT_THE_ITEMS, ids=lambda error: error.message)
async def test_an_error_that_is_not_an_items_is_raised(error: BlitzError) -> None:
    """And nothing is run again."""
    model = Model(error)
    with pytest.raises(type(error)):
        await embed_around_failures(model.run, EmbedRequest("m", ("bad", "a")), ".")
    assert len(model.calls) == 1


async def test_vectors_of_two_revisions_are_never_mixed() -> None:
    """A model that is published anew meanwhile: the caller is to ask again."""
    model = Model()

    async def renewed(request: EmbedRequest) -> EmbedResult:
        return replace(await model.run(request), revision=f"r{len(model.calls)}")

    with pytest.raises(Unavailable, match="published anew"):
        await embed_around_failures(renewed, EmbedRequest("m", ("a", "bad", "b")), ".")
