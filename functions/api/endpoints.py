"""Handlers of the public routes: parse a body in its dialect, call the backend, format the result.

Does not know batches, or where the backend runs; dialects know the shapes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from functions.api.auth import caller_of, owner_of
from functions.api.build import connect as connect
from functions.api.build import connect_batches as connect_batches
from functions.api.responses import (
    PacedResponse,
    accepts_msgpack,
    answer_bytes,
    error_response,
    headers_of,
    is_large,
    json_response,
)
from functions.http.admission import reserve
from functions.http.caller import (
    LARGE_BODY_BYTES,
    Endpoint,
    in_thread_if,
    read_body,
    while_connected,
    wrap_endpoint,
)
from functions.http.readiness import not_ready_response, readiness_response
from shared import __version__
from shared.cards import ModelCard, Task
from shared.context import preference, sender
from shared.contracts import (
    AnyRequest,
    EmbedRequest,
    EmbedResult,
    EmbedSparseRequest,
    RerankRequest,
    RerankResult,
    Result,
    is_blank,
    prompt_for,
)
from shared.dialects import ollama, openai, tei
from shared.dialects.body import (
    JSON,
    decode_body,
    fill_from_query,
    in_words_of,
    join_indices,
    read_model,
    read_present_fields,
)
from shared.dialects.fields import check_fields, read_fields, warning_of
from shared.dialects.operations import (
    KNOWN,
    FormatError,
    Operation,
    choose,
    request_type_of,
    supported_by,
)
from shared.errors import BlitzError, InvalidInput, UnknownModel
from shared.models.capabilities import check_supports, supports
from shared.names import is_name
from shared.observability import metrics
from shared.observability.metrics import Telemetry
from shared.routing.item_failures import embed_around_failures
from shared.settings import Settings, aliases_of
from shared.wire import codec
from shared.wording import counted

if TYPE_CHECKING:
    from shared.backends.base import Backend
    from shared.models.catalogue import Catalogue


class Endpoints:
    """One handler per kind of route. Handlers raise BlitzError; `wrap` turns it into a response."""

    def __init__(
        self, settings: Settings, backend: Backend, catalogue: Catalogue, metrics: Telemetry
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._catalogue = catalogue
        self._metrics = metrics
        self._aliases = aliases_of(settings.model_aliases)

    def wrap(self, format_error: FormatError, endpoint: Endpoint) -> Endpoint:
        """`endpoint` under the request deadline, with errors formatted by `format_error`."""
        respond = partial(error_response, format_error)
        return wrap_endpoint(endpoint, respond, self._metrics, self._settings.request_timeout_s)

    def post_endpoint(self, operations: Sequence[Operation]) -> Endpoint:
        """The handler of a path's POST: the body selects one of `operations`."""

        async def post(request: Request) -> Response:
            operation = operations[-1]

            async def answer(request: Request) -> Response:
                nonlocal operation
                started = time.perf_counter()
                data = await read_body(request, self._settings.max_body_bytes)
                if len(operations) > 1:
                    read = partial(read_present_fields, data, request.headers.get("content-type", ""))
                    operation = choose(
                        operations, await in_thread_if(len(data) > LARGE_BODY_BYTES, read)
                    )
                return await self._run(request, operation, data, started)

            # Wrapped per request: the body selects the error dialect.
            return await self.wrap(lambda error: operation.format_error(error), answer)(request)

        return post

    async def _run(
        self, request: Request, operation: Operation, data: bytes, started: float
    ) -> Response:
        """Decode, run, format. started: a perf_counter."""
        named, body, asked, unknown = await self._read(request, operation, data)
        cards = await self._catalogue.cards_of(asked.model)
        _reserve_answer(request, asked, cards, self._settings.max_request_tokens)
        inputs = len(asked.texts)
        asks = sender.Sender(caller_of(request.scope), owner_of(request.scope))
        with preference.stated(request.headers.get(preference.HEADER)), sender.known(asks):
            self._metrics.request_arrived(inputs)
            try:
                result = await while_connected(request, self._ask(asked, named, operation.stand_in))
            except BlitzError as error:
                raise in_words_of(body, error) from error
        answered_by = [card.of_revision(result.revision) for card in cards]
        warnings = _warnings_of(asked, body, answered_by, unknown)
        if isinstance(result, EmbedResult | RerankResult):
            result = replace(result, warnings=tuple(warnings))
        # Clients expect the model's name as they sent it.
        answered = result.replaced(model=named) if named not in ("", asked.model) else result
        packed = accepts_msgpack(request)
        encode = operation.format_result_msgpack if packed else operation.format_result
        content = await in_thread_if(is_large(result), partial(encode, answered, body))
        total_s = time.perf_counter() - started
        self._metrics.request_succeeded(result, inputs=inputs, duration_s=total_s)
        self._metrics.key_read(asks.name, result.total_tokens)
        media_type = codec.CONTENT_TYPE if packed else JSON
        headers = headers_of(asked, result, total_s)
        if warnings:
            headers["x-warning"] = "; ".join(warnings)
        return PacedResponse(content, 200, headers, media_type)

    async def _read(
        self, request: Request, operation: Operation, data: bytes
    ) -> tuple[str, Any, AnyRequest, list[str]]:
        """The model's name as sent ("": none), the body, the contract request, unknown fields.

        An invalid body is checked against its model before its own error is reported, because an unknown
        or unsuitable model is the more useful message.
        """
        content_type, large = request.headers.get("content-type", ""), len(data) > LARGE_BODY_BYTES
        kind = request_type_of(operation)
        try:
            decode = partial(decode_body, data, content_type, operation.body)
            body = await in_thread_if(large, decode)
            unknown = await in_thread_if(large, partial(_unknown_fields, data, content_type, operation))
            if operation.query:
                body = fill_from_query(body, request.query_params, operation.query)
            named = self._named(request, body.model)
            model = self._model(operation.spellings(named)) if named else ""
            model = model or (await self._default_card(operation.task, kind)).name
            await self._check_model(named, model, kind)
            asked = operation.request_from(body, model=model, settings=self._settings)
            return named, body, asked, unknown
        except InvalidInput:
            named = self._named(
                request, await in_thread_if(large, partial(read_model, data, content_type))
            )
            if named:
                model = self._model(operation.spellings(named))
                await self._check_model(named, model, kind, is_known=True)
            raise

    def _named(self, request: Request, in_body: str | None) -> str:
        return str(
            request.path_params.get("model")
            or in_body
            or request.query_params.get("model")
            or self._settings.default_model
        )

    def _model(self, spellings: Sequence[str]) -> str:
        """Resolve spellings to a model's name. An alias takes precedence over a model."""
        aliased = (self._aliases[each] for each in spellings if each in self._aliases)
        return next(aliased, next(filter(is_name, spellings), spellings[0]))

    async def _check_model(
        self, named: str, model: str, kind: type[AnyRequest], *, is_known: bool = False
    ) -> None:
        """Raises InvalidInput if `model` does not support `kind`; UnknownModel for an impossible name.

        named: as the caller sent it. is_known: a model that is not listed is unknown; otherwise the
        backend decides, which may know a model that was published seconds ago.
        """
        cards = await self._catalogue.cards_of(model) if is_name(model) else []
        if not cards and (is_known or not is_name(model)):
            raise await self._unknown(named, kind)
        for card in cards[:1]:
            check_supports(kind, card)

    async def _unknown(self, named: str, kind: type[AnyRequest] | None = None) -> UnknownModel:
        cards = [card for card in await self._named_cards() if kind is None or supports(kind, card)]
        return UnknownModel.among((card.name for card in cards), named)

    async def models(self, request: Request) -> Response:
        """GET /v1/models, aliases included."""
        return json_response(openai.format_models(await self._listed()))

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{model}."""
        name = (await self._card(request.path_params["model"])).name
        return json_response(openai.format_model(name, (await self._listed())[name]))

    async def tags(self, request: Request) -> Response:
        """GET /api/tags (Ollama)."""
        return json_response(ollama.format_tags(await self._named_cards()))

    async def show(self, request: Request) -> Response:
        """POST /api/show (Ollama)."""
        data = await read_body(request, self._settings.max_body_bytes)
        body = decode_body(data, request.headers.get("content-type", ""), ollama.ShowBody)
        named = body.model or body.name or self._settings.default_model
        card = await self._card(*ollama.spellings(named)) if named else await self._default_card()
        tokens = min(await self._usable_tokens(card), self._settings.max_request_tokens)
        return json_response(ollama.format_show(card, tokens))

    async def version(self, request: Request) -> Response:
        """GET /api/version (Ollama)."""
        return json_response(ollama.format_version())

    async def info(self, request: Request) -> Response:
        """GET /info (Text Embeddings Inference): of the named, the default or the only model."""
        name = request.query_params.get("model") or self._settings.default_model
        card = await self._card(name) if name else await self._default_card()
        return json_response(
            tei.format_info(card, self._settings, __version__, await self._usable_tokens(card))
        )

    async def health(self, request: Request) -> Response:
        """Liveness of this process; /ready covers models."""
        return Response()

    async def ready(self, request: Request) -> Response:
        """GET /ready: 200 once the models to be warmed are warm, with the state of each."""
        try:
            states = await self._backend.states()
        except BlitzError as error:
            return not_ready_response(error.message, self._metrics)
        return readiness_response(states, self._settings.names_to_warm or None, self._metrics)

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, in Prometheus' text format."""
        return Response(self._metrics.render(), media_type=metrics.CONTENT_TYPE)

    async def _ask(self, asked: AnyRequest, named: str, stand_in: str | None) -> Result:
        try:
            if stand_in is not None and isinstance(asked, EmbedRequest):
                return await embed_around_failures(self._backend.run, asked, stand_in)
            result: Result = await self._backend.run(asked)
            return result
        except UnknownModel:
            raise await self._unknown(named or asked.model, type(asked)) from None

    async def _cards(self) -> list[ModelCard]:
        """One card per model: the CPU's if it is published for both devices."""
        return [cards[0] for _, cards in sorted((await self._by_name()).items())]

    async def _named_cards(self) -> list[ModelCard]:
        """One card per accepted name, aliases included."""
        return [replace(cards[0], name=name) for name, cards in (await self._listed()).items()]

    async def _listed(self) -> dict[str, list[ModelCard]]:
        """All cards of each accepted name, by name; an alias takes precedence over a model."""
        by_name = await self._by_name()
        aliased = {alias: by_name[name] for alias, name in self._aliases.items() if name in by_name}
        return dict(sorted({**by_name, **aliased}.items()))

    async def _by_name(self) -> dict[str, list[ModelCard]]:
        """All cards of each model, the CPU's first."""
        by_name: dict[str, list[ModelCard]] = {}
        for card in sorted(await self._catalogue.cards(), key=lambda card: card.device):
            by_name.setdefault(card.name, []).append(card)
        return by_name

    async def _usable_tokens(self, card: ModelCard) -> int:
        """The longest input that its backend accepts; the model's own limit if the backend is silent."""
        try:
            states = await self._backend.states()
        except BlitzError:
            states = []
        by_model = {(state.name, state.device): state for state in states}
        state = by_model.get((card.name, card.device))
        return card.max_tokens if state is None or state.max_tokens is None else state.max_tokens

    async def _card(self, *spellings: str) -> ModelCard:
        for card in await self._named_cards():
            if card.name in spellings:
                return card
        raise await self._unknown(spellings[0])

    async def _default_card(
        self, task: Task | None = None, kind: type[AnyRequest] | None = None
    ) -> ModelCard:
        """The model of a request that names none: the only model, or else the only one for `task`."""
        cards = await self._cards()
        fit = [card for card in cards if card.task == task and (kind is None or supports(kind, card))]
        for candidates in (cards, fit):
            if len(candidates) == 1:
                return candidates[0]
        able = [card for card in cards if kind is None or supports(kind, card)]
        place = "in the body as model, or as ?model=" if kind else "as ?model="
        raise InvalidInput(f"name a model, {place}; there are: {_names(fit or able)}", field="model")


def _reserve_answer(
    request: Request, asked: AnyRequest, cards: Sequence[ModelCard], max_tokens: int
) -> None:
    """Reserve the response's memory before running: concurrent requests all allocate at once."""
    both = [*cards, *(card.staged.card for card in cards if card.staged)]
    dimensions = max((card.dimensions for card in both), default=0)
    reserve(request.scope, answer_bytes=answer_bytes(asked, dimensions, max_tokens))


def _warnings_of(
    asked: AnyRequest, body: object, cards: Sequence[ModelCard], unknown: Sequence[str]
) -> list[str]:
    """Warnings for the caller: ignored fields, input types without effect, empty documents."""
    warnings = [warning_of(unknown)] if unknown else []
    if isinstance(asked, EmbedRequest | EmbedSparseRequest) and asked.prompt_name is None and cards:
        field = next((name for name in ("input_type", "task") if getattr(body, name, None)), None)
        if field and not any(prompt_for(asked.input_type, card.prompts) for card in cards):
            had = ", ".join(cards[0].prompts)
            has = f"the prompts of {asked.model} are {had}" if had else f"{asked.model} has no prompts"
            warnings.append(f"{field} has no effect: {has}")
    if isinstance(asked, RerankRequest):
        blank = [index for index, text in enumerate(asked.documents) if is_blank(text)]
        if blank:
            verbs = "is empty and comes" if len(blank) == 1 else "are empty and come"
            warnings.append(f"{counted(len(blank), 'document')} {verbs} last: {join_indices(blank)}")
    return warnings


def _unknown_fields(data: bytes, content_type: str, operation: Operation) -> list[str]:
    return check_fields(read_fields(data, content_type), supported_by(operation.body), KNOWN)


def _names(cards: list[ModelCard]) -> str:
    return ", ".join(card.name for card in cards) or "none"
