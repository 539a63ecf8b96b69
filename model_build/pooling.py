"""Reads the config.json of a Pooling module.

It does not know models or vectors.
"""

from __future__ import annotations

from pathlib import Path

from model_build.configuration import Pooling as PoolingConfig
from model_build.folder import fields_of, read_json, refused
from shared.vectors import Pooling, Poolings

# sentence-transformers' name -> ours. Several are concatenated in the stated order.
_POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "lasttoken": "last",
    "weightedmean": "weighted_mean",
    "mean_sqrt_len_tokens": "mean_sqrt_length",
}
# Booleans of older versions, in the order in which sentence-transformers concatenates the poolings.
_LEGACY_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def read_pooling(folder: Path) -> Poolings:
    """The pooling, from `pooling_mode` or the booleans of older versions; "mean" by default.

    Raises InvalidInput (field "model") for an unknown pooling, or one that excludes the prompt.
    """
    config = fields_of(read_json(folder / "config.json") or {}, PoolingConfig, "Pooling's config.json")
    if config.include_prompt is False:
        raise refused("the model excludes its prompt from pooling, which the server does not support")
    modes = config.pooling_mode
    if modes is None:
        modes = [mode for key, mode in _LEGACY_POOLINGS.items() if getattr(config, key)] or ["mean"]
    elif isinstance(modes, str):
        modes = [modes]
    if not modes or len(modes) > len(_POOLINGS) or not set(modes) <= _POOLINGS.keys():
        raise refused(f"pooling {' + '.join(map(str, modes[:9]))} is not made of {', '.join(_POOLINGS)}")
    found = tuple(_POOLINGS[mode] for mode in modes)
    return found[0] if len(found) == 1 else found
