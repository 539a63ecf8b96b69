"""Rows of a table get their vectors, in one process that holds an Inference.

Does not know Ray, files, or which other rows there are. No text stands in an error.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import pyarrow as pa
from msgspec.structs import replace

from shared.cards import Device
from shared.contracts import EmbedRequest, EmbedResult
from shared.errors import BlitzError, InvalidInput, Overloaded
from shared.inference.service import Inference
from shared.names import pinned_name
from shared.partition import slices_by_bytes
from shared.routing.item_failures import run_around_failures
from shared.settings import Settings

ADDED = ("vector", "tokens", "truncated", "error")
"""Columns of a table with vectors; one of the input that has such a name is called input_NAME."""


@dataclass(frozen=True, slots=True)
class HowToEmbed:
    """What is to be embedded, and how: the same for all rows of a job.

    revision: of the model, so that no publishing in between mixes two. dimensions: of the vectors.
    """

    model: str
    revision: str
    dimensions: int
    text_column: str = "text"
    prompt_name: str | None = None
    truncate: bool = True


class RowEmbedder:
    """For one thread. The process's models are loaded with the first rows.

    threads: engine threads, the CPUs that this process may use.
    """

    def __init__(self, settings: Settings, device: Device, threads: int, how: HowToEmbed) -> None:
        settings = replace(settings, role=device, threads=settings.threads or threads)
        # Imported by name, so that CPU actors never load the GPU's dependencies.
        self._inference: Inference = import_module(f"functions.{device}").create_inference(settings)
        self._request_tokens = settings.max_request_tokens
        self._how = how
        self._runner = asyncio.Runner()  # models belong to one event loop

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with ADDED columns. A row that the model refuses has nulls and an error.

        Raises Misconfigured or InvalidInput for what is wrong with all rows, Unavailable for what may
        go better later.
        """
        texts = self._texts(table)
        failed = {
            row: f"the column {self._how.text_column} holds no text here"
            for row, text in enumerate(texts)
            if not isinstance(text, str)
        }
        rows = [row for row in range(len(texts)) if row not in failed]
        given = [text if isinstance(text, str) else "" for text in texts]
        vectors: list[np.ndarray | None] = [None] * len(texts)
        tokens: list[int | None] = [None] * len(texts)
        cut: list[bool | None] = [None] * len(texts)
        for some, result in self._runner.run(self._embed(given, rows, failed)):
            for at, row in enumerate(some):
                vectors[row] = result.vectors[at]
                tokens[row] = result.token_counts[at]
                cut[row] = at in result.cut
        return _with_columns(table, vectors, tokens, cut, failed, self._how.dimensions)

    def close(self) -> None:
        """Free the models and the event loop; an actor's end with its process."""
        self._runner.run(self._inference.close())
        self._runner.close()

    def _texts(self, table: pa.Table) -> list[object]:
        if self._how.text_column not in table.column_names:
            raise InvalidInput(
                f"there is no column {self._how.text_column}; there are: "
                f"{', '.join(table.column_names)}",
                field="text_column",
            )
        texts: list[object] = table[self._how.text_column].to_pylist()
        return texts

    async def _embed(
        self, texts: list[str], rows: list[int], failed: dict[int, str]
    ) -> list[tuple[list[int], EmbedResult]]:
        """Results for rows that the model takes; the others are added to `failed`."""
        results = []
        for slice_ in slices_by_bytes(texts, rows, self._request_tokens):
            answered = await run_around_failures(
                lambda some: self._ask([texts[row] for row in some]), slice_, "input"
            )
            failed |= {row: _reason(error) for row, error in answered.failed.items()}
            results += answered.results
        return results

    async def _ask(self, texts: list[str]) -> EmbedResult:
        how = self._how
        request = EmbedRequest(
            pinned_name(how.model, how.revision),
            tuple(texts),
            dimensions=how.dimensions,
            truncate=how.truncate,
            prompt_name=how.prompt_name,
        )
        while True:
            try:
                return await self._inference.run(request)
            except Overloaded as error:  # by what this process was just asked for
                await asyncio.sleep(error.retry_after_s or 1.0)


def _reason(error: BlitzError) -> str:
    """Its message without the number, which is of one call alone."""
    return error.message.replace(error.field or "\0", "the text")


def _with_columns(
    table: pa.Table,
    vectors: list[np.ndarray | None],
    tokens: list[int | None],
    cut: list[bool | None],
    failed: dict[int, str],
    dimensions: int,
) -> pa.Table:
    names = [f"input_{name}" if name in ADDED else name for name in table.column_names]
    table = table.rename_columns(names)
    columns = {
        "vector": pa.array(vectors, pa.list_(pa.float32(), dimensions)),
        "tokens": pa.array(tokens, pa.int32()),
        "truncated": pa.array(cut, pa.bool_()),
        "error": pa.array([failed.get(row) for row in range(len(vectors))], pa.string()),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table
