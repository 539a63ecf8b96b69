from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import Misconfigured
from shared.settings import Settings


def test_each_kind_of_value_is_read_from_its_variable() -> None:
    """Ints, floats, booleans, paths and lists arrive typed; other variables are ignored."""
    settings = Settings.from_env(
        {
            "BLITZ_CACHE_MODELS": "7",
            "BLITZ_MAX_WAIT_MS": "2.5",
            "BLITZ_ALLOW_TOKEN_IDS": "true",
            "BLITZ_CACHE_DIR": "/data",
            "BLITZ_WARM_MODELS": "a, b,",
            "PATH": "/bin",
        }
    )
    assert settings.cache_models == 7
    assert settings.max_wait_ms == 2.5
    assert settings.allow_token_ids is True
    assert settings.cache_dir == Path("/data")
    assert settings.warm_models == ("a", "b")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"BLITZ_CACHE_MODEL": "4"}, "did you mean BLITZ_CACHE_MODELS"),
        ({"BLITZ_BATCH_TOKENS": "many"}, "BLITZ_BATCH_TOKENS is 'many'"),
        ({"BLITZ_BATCH_TOKENS": "0"}, "BLITZ_BATCH_TOKENS must be more than 0"),
        ({"BLITZ_THREADS": "-1"}, "BLITZ_THREADS must be 0 or more"),
        ({"BLITZ_ALLOW_TOKEN_IDS": "maybe"}, "BLITZ_ALLOW_TOKEN_IDS"),
        ({"BLITZ_ROLE": "gpu2"}, "BLITZ_ROLE must be"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(environ: dict[str, str], message: str) -> None:
    """Misspelt and impossible settings stop the start and say which variable is wrong."""
    with pytest.raises(Misconfigured, match=message):
        Settings.from_env(environ)
