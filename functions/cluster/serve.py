"""The Ray Serve application: which deployments there are, and what each may take of the cluster.

`serve deploy` and functions.cluster's command line build it with `build`. Does not know what they do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from functions.cluster.replica import Replica
from functions.cluster.request_router import STATS_PERIOD_S, ByHeldModels
from functions.cluster.router import Router
from functions.cluster.sizes import Sizes, sizes_of
from shared.cards import Device
from shared.settings import Settings

APPLICATION, ROUTER = "blitz", "router"
"""As Ray names them; the backends are named by their devices."""

LOOK_BACK_S = 15.0
"""Replicas tell what waits every 10 s, unless RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S says
otherwise; Ray wants more than one of these."""

GIGABYTE = 1_000_000_000
_RUNTIME_BYTES = 600_000_000
"""Of a replica's process without models: as shared.engines.memory leaves free."""


def build(args: Mapping[str, Any]) -> Application:
    """For config files: `import_path: functions.cluster.serve:build`, sizes in `args`, settings in the
    environment (runtime_env: env_vars). Raises Misconfigured."""
    return application(Settings.from_env(os.environ), sizes_of(args))


def application(settings: Settings, sizes: Sizes) -> Application:
    """Router, CPU backend and, where sizes allow one, GPU backend."""
    handles: dict[Device, Application] = {"cpu": _cpu_backend(settings, sizes)}
    calls: dict[Device, int] = {"cpu": settings.backend_concurrency * sizes.max_cpu_replicas}
    if sizes.max_gpu_replicas:
        handles["gpu"] = _gpu_backend(settings, sizes)
        calls["gpu"] = settings.backend_concurrency * sizes.max_gpu_replicas
    router = serve.deployment(Router).options(
        name=ROUTER,
        ray_actor_options={"num_cpus": sizes.router_cpus},
        max_ongoing_requests=2 * settings.max_requests,  # the app answers 429 itself, in the dialect
        autoscaling_config=AutoscalingConfig(
            min_replicas=sizes.routers,
            max_replicas=sizes.max_routers,
            target_ongoing_requests=settings.max_requests / 8,
            upscale_delay_s=sizes.upscale_s,
            downscale_delay_s=sizes.downscale_s,
        ),
        graceful_shutdown_timeout_s=sizes.drain_s,
    )
    return router.bind(settings, handles, calls)


def _cpu_backend(settings: Settings, sizes: Sizes) -> Application:
    resources: dict[str, float] = {"num_cpus": sizes.replica_cpus}
    if sizes.replica_memory_gb:
        memory = sizes.replica_memory_gb * GIGABYTE
        resources["memory"] = memory
        left = int(memory) - settings.cache_memory_bytes - _RUNTIME_BYTES
        settings = replace(settings, batch_memory_bytes=settings.batch_memory_bytes or max(1, left))
    return _backend(
        settings,
        "cpu",
        sizes,
        resources,
        threads=max(1, int(sizes.replica_cpus)),
        replicas=(sizes.cpu_replicas, sizes.max_cpu_replicas),
        tokens=sizes.tokens_per_replica,
    )


GPU_TOKENS = 10
"""A GPU does the work of so many CPU replicas, in the autoscaler's eyes, or it would not be worth it."""


def _gpu_backend(settings: Settings, sizes: Sizes) -> Application:
    return _backend(
        settings,
        "gpu",
        sizes,
        {"num_cpus": sizes.gpu_replica_cpus, "num_gpus": 1},
        threads=1,
        replicas=(0, sizes.max_gpu_replicas),
        tokens=sizes.tokens_per_replica * GPU_TOKENS,
    )


def _backend(
    settings: Settings,
    device: Device,
    sizes: Sizes,
    resources: dict[str, float],
    *,
    threads: int,
    replicas: tuple[int, int],
    tokens: int,
) -> Application:
    at_least, at_most = replicas
    policy = AutoscalingPolicy(
        policy_function="functions.cluster.scaling:ByWaitingTokens",
        policy_kwargs={"tokens_per_replica": tokens},
    )
    deployment = serve.deployment(Replica).options(
        name=device,
        ray_actor_options=resources,
        # Replicas refuse requests themselves, by tokens; Ray only bounds what it holds for one.
        max_ongoing_requests=settings.max_requests,
        autoscaling_config=AutoscalingConfig(
            min_replicas=at_least,
            max_replicas=at_most,
            upscale_delay_s=sizes.upscale_s,
            downscale_delay_s=sizes.downscale_s,
            downscale_to_zero_delay_s=settings.gpu_idle_s,
            look_back_period_s=LOOK_BACK_S,
            policy=policy,
        ),
        request_router_config=RequestRouterConfig(
            request_router_class=ByHeldModels, request_routing_stats_period_s=STATS_PERIOD_S
        ),
        graceful_shutdown_timeout_s=sizes.drain_s,
    )
    return deployment.bind(settings, device, threads)
