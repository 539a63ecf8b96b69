"""Makes an input a job: its options, its model and device, its chunks and a message for each.

Does not know triggers, nor how rows become vectors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec
from msgspec.structs import replace

from shared.bulk import jobs
from shared.bulk.inputs.detect import HEAD_BYTES, Kind, ReadOptions, detect_format
from shared.bulk.jobs import Job, StepMessage
from shared.bulk.ledger import Ledger
from shared.bulk.observed import belongs_to
from shared.bulk.options import SIDECAR, JobOptions, no_model, options_of
from shared.bulk.passed_over import is_input
from shared.bulk.paths import JobPaths, event_key
from shared.bulk.rows import BadRow
from shared.bulk.steps.cutting import Cutter
from shared.bulk.threads import Threads
from shared.cards import Device, ModelCard
from shared.errors import InvalidInput, SourceChanged, printable
from shared.names import check_prompt
from shared.routing.policy import BackendView, Policy, Work
from shared.storage.blobs import Blobs, BlobStat, Storage

_MAX_SIDECAR_BYTES = 64 << 10
_LONGEST_SUFFIX = ".errors.jsonl"

BYTES_PER_TEXT = 400
"""A guess, for where a job should go; nothing else depends on it."""


class AllCards(Protocol):
    """What is needed of shared.models.catalogue.Catalogue."""

    async def cards(self) -> list[ModelCard]:
        """A card for each model and device."""


class Splitter:
    """threads: for cutting, which takes long. aliases: of models -> names. clock: Unix seconds."""

    def __init__(
        self,
        storage: Storage,
        ledger: Ledger,
        catalogue: AllCards,
        policy: Policy,
        cutter: Cutter,
        threads: Threads,
        *,
        devices: Sequence[Device],
        default_model: str,
        aliases: Mapping[str, str],
        clock: Callable[[], float],
    ) -> None:
        self._storage = storage
        self._ledger = ledger
        self._catalogue = catalogue
        self._policy = policy
        self._cutter = cutter
        self._threads = threads
        self._devices = devices
        self._default_model = aliases.get(default_model, default_model)
        self._aliases = aliases
        self._clock = clock

    async def split(self, message: StepMessage) -> str | None:
        """Read the input, write its chunks, send a message for each.

        Returns the job's id; None if that version of the input is gone, or is no input.
        """
        blobs = self._ledger.blobs(message.container)
        if message.container == "source" and not is_input(message.key):
            return None
        stat = await asyncio.to_thread(blobs.stat, message.key)
        if stat is None or (message.etag and stat.etag != message.etag):
            if not message.job:
                return None  # a newer version has an event of its own
            gone = BlobStat(message.key, 0, message.etag, 0.0, {})
            draft = jobs.draft_job(message, gone, self._clock())
            return await self._ledger.reject(draft, SourceChanged("the input was changed or deleted"))
        draft = jobs.draft_job(message, stat, self._clock())
        try:  # step by step: the status of a rejected input has what was found so far
            draft = await self._with_options(draft, stat, blobs)
            draft = await self._with_format(draft, stat, blobs)
            job = await self._create(draft, stat)
        except (InvalidInput, SourceChanged) as error:
            return await self._ledger.reject(draft, error)
        belongs_to(job)
        if await self._ledger.is_over(job):
            return job.id
        try:
            await self._threads.run(self._cutter.write, job, blobs)
        except (InvalidInput, SourceChanged) as error:
            await self._ledger.fail(job, error)
            return job.id
        if await self._ledger.ended(job.id):
            await self._ledger.clean_up(job.id)  # cancelled, and chunks came after its end
        await self._ledger.finish_if_done(job.id)
        return job.id

    async def _with_options(self, draft: Job, stat: BlobStat, blobs: Blobs) -> Job:
        """Raises InvalidInput."""
        if draft.container == "out":
            return replace(draft, options=options_of(draft.container, stat, None, self._aliases))
        await asyncio.to_thread(check_outputs, self._storage.out, stat.key)
        sidecar = await asyncio.to_thread(_read_sidecar, blobs, stat.key + SIDECAR)
        options = options_of(draft.container, stat, sidecar, self._aliases)
        return replace(draft, options=options, sidecar=sidecar is not None)

    async def _with_format(self, draft: Job, stat: BlobStat, blobs: Blobs) -> Job:
        """And with a model, of the requests or by default. Raises InvalidInput and SourceChanged."""
        options = draft.options
        head = await asyncio.to_thread(blobs.read_range, stat.key, 0, HEAD_BYTES, etag=stat.etag)
        form = detect_format(stat.key, head, ReadOptions(kind=options.kind))
        draft = replace(draft, kind=form.kind, compression=form.compression)
        if options.model:
            return draft
        named = await self._threads.run(self._model_in, draft, blobs) if form.kind == "batch" else ""
        model = self._aliases.get(named, named) or self._default_model
        return replace(draft, options=replace(options, model=model))

    async def _create(self, draft: Job, stat: BlobStat) -> Job:
        """The job of this version of an input, created if it is new. Raises InvalidInput."""
        container, options = draft.container, draft.options
        cards = await self._catalogue.cards()
        if not options.model:
            options = replace(options, model=_only_model(draft, cards, self._aliases))
        card = _card_for(options, cards, self._choose(options, stat.size), self._aliases, draft.kind)
        # An uploaded file's job has its id from whoever asked for it.
        job = replace(
            draft,
            id=draft.id if container == "out" else jobs.job_id(container, stat, options, card.revision),
            options=options,
            revision=card.revision,
            dimensions=options.dimensions or card.dimensions,
            device=card.device,
            task=card.task,
        )
        out = self._storage.out
        if not await asyncio.to_thread(out.create, JobPaths(job.id).job, jobs.encode(job)):
            job = await self._ledger.job(job.id) or job
        if not await self._ledger.ended(job.id):
            await asyncio.to_thread(out.create, JobPaths(job.id).active, b"")
            await self._ledger.write_status(job, "validating")
        seen = event_key(container, stat.key, stat.etag)
        await asyncio.to_thread(out.write, seen, job.id.encode())
        return job

    def _model_in(self, draft: Job, blobs: Blobs) -> str:
        """What an OpenAI Batch file's first valid request names, or "". Raises InvalidInput."""
        row = self._cutter.first_row(draft, blobs)
        if row is None:
            raise InvalidInput("the file has no request")
        if isinstance(row, BadRow):
            raise InvalidInput(f"no line is a valid request; line {row.line}: {row.message}")
        return (isinstance(row.fields, str) and _model_named(row.fields)) or ""

    def _choose(self, options: JobOptions, size: int) -> list[Device]:
        """Where the chunks should go, best first."""
        if options.backend != "auto":
            return [options.backend]
        work = Work(
            texts=max(1, size // BYTES_PER_TEXT),
            tokens=size // 4,
            cross_encoder=False,
            size_bytes=dict.fromkeys(self._devices, 0),
        )
        idle = BackendView(available=True, warm=True, waking_s=None, queued_tokens=0)
        return list(self._policy(work, dict.fromkeys(self._devices, idle)).devices)


def _card_for(
    options: JobOptions,
    cards: list[ModelCard],
    devices: list[Device],
    aliases: Mapping[str, str],
    kind: Kind,
) -> ModelCard:
    """The model on the first of `devices` that has it, else on any. Raises InvalidInput."""
    named = [card for card in cards if card.name == options.model]
    if not named:
        known = ", ".join(_names(cards, aliases)) or "none"
        raise InvalidInput(
            f"there is no embedding model {printable(options.model)!r}; there are: {known}",
            field="model",
        )
    if named[0].task == "cross-encoder":
        raise InvalidInput(f"{options.model} is a cross-encoder, which has no vectors", field="model")
    if named[0].task != "embedding":
        _check_token_options(options, named[0], kind)
    if options.dimensions is not None and options.dimensions > named[0].dimensions:
        raise InvalidInput(
            f"dimensions must be at most {named[0].dimensions} for {options.model}", field="dimensions"
        )
    if options.prompt_name:  # "" switches the default off
        check_prompt(options.prompt_name, named[0].prompts)
    if options.backend != "auto":
        named = [card for card in named if card.device == options.backend]
        if not named:
            raise InvalidInput(
                f"{options.model} is not published for {options.backend}, or there is no such backend",
                field="backend",
            )
    ranks = {device: rank for rank, device in enumerate(devices)}
    return min(named, key=lambda card: ranks.get(card.device, len(ranks)))


def _check_token_options(options: JobOptions, card: ModelCard, kind: Kind) -> None:
    """Raises InvalidInput for what a model has no answer to that has no single dense vector."""
    what = f"{card.name} is a {card.task} model, which has no single dense vector for a text"
    if kind == "batch":
        raise InvalidInput(f"{what}, as OpenAI's batches have it", field="model")
    for name, usual in (("dimensions", None), ("dtype", "float32")):
        if getattr(options, name) != usual:
            raise InvalidInput(f"{what}: leave {name} out", field=name)
    if options.format == "npy":
        raise InvalidInput(f"{what}: the format is parquet or jsonl", field="format")


def _only_model(draft: Job, cards: list[ModelCard], aliases: Mapping[str, str]) -> str:
    """Raises InvalidInput if there are several."""
    names = _names(cards, {})
    if len(names) != 1:
        raise no_model(draft.container, draft.source, draft.kind, _names(cards, aliases))
    return names[0]


def _names(cards: list[ModelCard], aliases: Mapping[str, str]) -> list[str]:
    """Those that embed, and what else they are called."""
    names = {card.name for card in cards if card.task != "cross-encoder"}
    return sorted(names | {alias for alias, name in aliases.items() if name in names})


def check_outputs(out: Blobs, key: str) -> None:
    """That what is made of an input can have its name. Raises InvalidInput."""
    try:
        out.stat(f"{key}{_LONGEST_SUFFIX}")
    except InvalidInput as error:
        raise InvalidInput(
            f"the file's name is too long: what is made of it is called NAME{_LONGEST_SUFFIX}, and "
            f"{error.message}"
        ) from None


def _read_sidecar(blobs: Blobs, key: str) -> bytes | None:
    """None if there is none. Raises InvalidInput."""
    stat = blobs.stat(key)
    if stat is None:
        return None
    if stat.size > _MAX_SIDECAR_BYTES:
        raise InvalidInput(f"{key} has {stat.size} bytes, more than {_MAX_SIDECAR_BYTES}")
    return blobs.read_range(key, 0, stat.size, etag=stat.etag)


def _model_named(fields: str) -> str | None:
    return msgspec.json.decode(fields, type=_Asked).model


class _Asked(msgspec.Struct, frozen=True):
    model: str | None = None
