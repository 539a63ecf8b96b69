"""How large each deployment is: replicas, CPUs, memory. What `args` of a Serve config file may hold.

Does not import Ray, so that config files can be written and checked without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

import msgspec

from shared.errors import Misconfigured

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
_CountOrNone: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=10_000)]
_Cpus: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=1024)]

TOKENS_PER_REPLICA = 20_000
"""Two seconds of all-MiniLM-L6-v2 in INT8 on two cores: see SPEEDS in shared.routing.policy."""


class Sizes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the deployments may take of a cluster.

    routers, cpu_replicas: at least so many. max_*: at most; 0 for max_gpu_replicas: no GPU backend.
    router_cpus, replica_cpus, gpu_replica_cpus: of one; a CPU replica has so many engine threads.
    replica_memory_gb: of a CPU replica, reserved with Ray where it is not 0; settings divide it.
    tokens_per_replica: waiting tokens for which one more CPU replica is worth starting.
    upscale_s, downscale_s: how long more or fewer replicas must be wanted before Ray acts.
    drain_s: how long a replica that is to end may take for the requests it has.
    """

    routers: _Count = 1
    max_routers: _Count = 1
    router_cpus: _Cpus = 1.0
    cpu_replicas: _Count = 1
    max_cpu_replicas: _Count = 1
    replica_cpus: _Cpus = 1.0
    replica_memory_gb: Annotated[float, msgspec.Meta(ge=0, le=10_000)] = 0.0
    max_gpu_replicas: _CountOrNone = 0
    gpu_replica_cpus: _Cpus = 2.0
    tokens_per_replica: Annotated[int, msgspec.Meta(ge=1)] = TOKENS_PER_REPLICA
    upscale_s: Annotated[float, msgspec.Meta(ge=0)] = 5.0
    downscale_s: Annotated[float, msgspec.Meta(ge=0)] = 300.0
    drain_s: Annotated[float, msgspec.Meta(ge=0)] = 60.0

    def __post_init__(self) -> None:
        if self.max_routers < self.routers:
            raise ValueError("max_routers is less than routers")
        if self.max_cpu_replicas < self.cpu_replicas:
            raise ValueError("max_cpu_replicas is less than cpu_replicas")

    @property
    def cpus(self) -> float:
        """What it takes at the least: without that it does not start."""
        return self.routers * self.router_cpus + self.cpu_replicas * self.replica_cpus


def sizes_of(args: Mapping[str, Any]) -> Sizes:
    """Sizes of a config file's `args`. Raises Misconfigured naming the field."""
    try:
        return msgspec.convert(dict(args), Sizes)
    except msgspec.ValidationError as error:
        raise Misconfigured(f"the application's args are not valid: {error}") from None
