"""Builds a backend's inference from settings: store, cache, batcher, tokenizers. Does not know HTTP."""

from __future__ import annotations

import logging

from functions.http.startup import log_engine_limits
from shared.cards import Device
from shared.engines import allocator
from shared.engines.base import Capacity, OpenEngine
from shared.engines.cpus import usable_cpus
from shared.engines.memory import left_for_batches, usable_memory
from shared.inference.batcher import Batcher
from shared.inference.model import Model, load_model
from shared.inference.model_cache import ModelCache
from shared.inference.service import Inference
from shared.inference.turns import Turns
from shared.models.catalogue import Catalogue
from shared.models.store import open_store
from shared.names import split_pinned
from shared.observability import metrics
from shared.settings import Settings

_log = logging.getLogger(__name__)


def build_inference(
    settings: Settings, device: Device, open_engine: OpenEngine, capacity: Capacity
) -> Inference:
    """Inference for this process; models warm up in the background.

    capacity: the engine's defaults where settings are 0. Raises Misconfigured for an invalid store.
    """
    allocator.bound_arenas()
    store = open_store(settings)
    max_bytes = settings.batch_memory_bytes or left_for_batches(
        settings.cache_memory_bytes, usable_memory()
    )

    def find_revision(name: str) -> str:
        plain, revision = split_pinned(name)
        return revision or store.current(plain, device)

    def load(name: str, revision: str) -> Model:
        folder, manifest = store.fetch(split_pinned(name)[0], revision)
        batch_tokens = settings.batch_tokens or capacity.tokens_for(manifest.target)
        model = load_model(folder, manifest, open_engine, max_bytes, batch_tokens)
        if model.tokenizer.usable_tokens < manifest.max_tokens:
            _log.warning(
                "%s reads %d tokens, but there is memory for %d: BLITZ_BATCH_MEMORY_BYTES is %d here",
                *(manifest.name, manifest.max_tokens, model.tokenizer.usable_tokens, max_bytes),
            )
        return model

    cache = ModelCache(
        find_revision=find_revision,
        load=load,
        max_models=settings.cache_models,
        max_bytes=settings.cache_memory_bytes,
        refresh_s=settings.refresh_s,
    )
    cache.warm(settings.names_to_warm)
    threads, tokenizer_threads = settings.threads or capacity.threads, usable_cpus()
    log_engine_limits(
        device,
        threads=threads,
        tokenizer_threads=tokenizer_threads,
        models=settings.cache_models,
        models_bytes=settings.cache_memory_bytes,
        batches_bytes=max_bytes,
    )
    batcher = Batcher(
        threads=threads,
        budget_tokens=settings.batch_tokens or capacity.batch_tokens,
        max_texts=settings.batch_texts or capacity.batch_texts,
        max_bytes=max_bytes,
        max_wait_s=settings.max_wait_ms / 1000,
        max_queue_tokens=settings.queue_tokens,
        max_queue_s=settings.max_queue_s,
    )
    metrics.PROCESS.watch_queue(lambda: batcher.queued_tokens)
    turns = Turns(tokenizer_threads, settings.max_queue_s)
    catalogue = Catalogue(store, (device,))
    return Inference(catalogue, cache, batcher, turns, settings.max_request_tokens)
