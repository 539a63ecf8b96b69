from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.errors import Misconfigured
from shared.settings import Settings, aliases_of, can_be_asked_for

HASH = "0123456789abcdef" * 4


def test_each_kind_of_value_is_read_from_its_variable() -> None:
    """Ints, floats, booleans, paths and lists arrive typed; other variables are ignored."""
    settings = Settings.from_env(
        {
            "BLITZ_CACHE_MODELS": "7",
            "BLITZ_MAX_WAIT_MS": "2.5",
            "BLITZ_ALLOW_TOKEN_IDS": "true",
            "BLITZ_CACHE_DIR": "/data",
            "BLITZ_WARM_MODELS": "a, b,",
            "BLITZ_API_KEY_HASHES": f"{HASH}, {HASH.upper()},",
            "BLITZ_ROUTING": "adaptive",
            "APPLICATIONINSIGHTS_AUTHENTICATION_STRING": "Authorization=AAD",
            "PATH": "/bin",
        }
    )
    assert settings.applicationinsights_authentication_string == "Authorization=AAD"
    assert settings.cache_models == 7
    assert settings.max_wait_ms == 2.5
    assert settings.allow_token_ids is True
    assert settings.cache_dir == Path("/data")
    assert settings.warm_models == ("a", "b")
    assert settings.api_key_hashes == (HASH, HASH.upper())
    assert settings.routing == "adaptive"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"BLITZ_CACHE_MODEL": "4"}, "did you mean BLITZ_CACHE_MODELS"),
        ({"BLITZ_CACHE_MODELS": "many"}, "BLITZ_CACHE_MODELS is 'many'"),
        ({"BLITZ_CACHE_MODELS": "0"}, "BLITZ_CACHE_MODELS must be more than 0"),
        ({"BLITZ_GPU_MIN_TEXTS": "0"}, "BLITZ_GPU_MIN_TEXTS must be more than 0"),
        ({"BLITZ_REQUEST_TIMEOUT_S": "-1"}, "BLITZ_REQUEST_TIMEOUT_S must be more than 0"),
        ({"BLITZ_REQUEST_TIMEOUT_S": "nan"}, "BLITZ_REQUEST_TIMEOUT_S is 'nan': not a valid"),
        ({"BLITZ_MAX_WAIT_MS": "inf"}, "BLITZ_MAX_WAIT_MS is 'inf': not a valid"),
        ({"BLITZ_BATCH_TOKENS": "-1"}, "BLITZ_BATCH_TOKENS must be 0 or more"),
        ({"BLITZ_THREADS": "-1"}, "BLITZ_THREADS must be 0 or more"),
        ({"BLITZ_ALLOW_TOKEN_IDS": "maybe"}, "BLITZ_ALLOW_TOKEN_IDS"),
        ({"BLITZ_ROLE": "gpu2"}, "BLITZ_ROLE must be one of: router, cpu, gpu"),
        ({"BLITZ_ROUTING": "random"}, "BLITZ_ROUTING must be one of: fixed, adaptive"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(environ: dict[str, str], message: str) -> None:
    """Misspelt and impossible settings stop the start and say which variable is wrong."""
    with pytest.raises(Misconfigured, match=message):
        Settings.from_env(environ)


@pytest.mark.parametrize("hashes", ["a-key-that-is-no-hash", HASH[:-1], f"{HASH},zzz", "  zzz"])
def test_a_key_in_place_of_its_hash_is_refused_and_not_shown(hashes: str) -> None:
    """The message goes to logs: it says what is expected and how to make one, not what was there."""
    with pytest.raises(Misconfigured, match=re.escape("python -m functions.keys")) as refused:
        Settings.from_env({"BLITZ_API_KEY_HASHES": hashes})
    assert hashes.strip() not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("BAAI/bge-m3", "use comma-separated ALIAS=NAME"),
        ("=bge-m3", "use comma-separated ALIAS=NAME"),
        ("BAAI/bge-m3=", "use comma-separated ALIAS=NAME"),
        ("a=b=c", "use comma-separated ALIAS=NAME"),
        ("a=b/c", "use comma-separated ALIAS=NAME"),
        ("../b=c", "use comma-separated ALIAS=NAME"),
        ("a/../b=c", "use comma-separated ALIAS=NAME"),
        ("a//b=c", "use comma-separated ALIAS=NAME"),
        ("/a=c", "use comma-separated ALIAS=NAME"),
        ("a/=c", "use comma-separated ALIAS=NAME"),
        ("a@r1=c", "use comma-separated ALIAS=NAME"),
        ("a b=c", "use comma-separated ALIAS=NAME"),
        ("a=..", "use comma-separated ALIAS=NAME"),
        (f"{'a' * 129}=c", "use comma-separated ALIAS=NAME"),
        ("a=b,a=c", "defines a twice"),
        ("a=b,b=c", "b is itself an alias"),
    ],
)
def test_an_alias_that_cannot_be_is_refused_at_the_start(given: str, said: str) -> None:
    """By its own words, and what would be right."""
    with pytest.raises(Misconfigured, match=f"BLITZ_MODEL_ALIASES.*{re.escape(said)}"):
        Settings.from_env({"BLITZ_MODEL_ALIASES": given})


def test_aliases_may_be_warmed() -> None:
    """As the models that they are, each once."""
    given = {"BLITZ_MODEL_ALIASES": "a/b=c,d=c", "BLITZ_WARM_MODELS": "a/b,e,d,c"}
    assert Settings.from_env(given).names_to_warm == ("c", "e")


@pytest.mark.parametrize(
    ("name", "can"),
    [
        ("mini", True),
        ("BAAI/bge-m3", True),
        ("a:b", True),
        ("../b", False),
        ("a//b", False),
        ("a b", False),
    ],
)
def test_what_could_be_asked_for_is_known_without_a_service(name: str, can: bool) -> None:
    assert can_be_asked_for(name) is can


def test_aliases_are_what_clients_call_models() -> None:
    """Hub ids, OpenAI's names, Ollama's tags."""
    given = (
        f"BAAI/bge-m3=bge-m3, text-embedding-3-small=mini ,a/b/c=x,bge-m3:latest=bge-m3,{'a' * 128}=b"
    )
    read = Settings.from_env({"BLITZ_MODEL_ALIASES": given}).model_aliases
    assert aliases_of(read) == {
        "BAAI/bge-m3": "bge-m3",
        "text-embedding-3-small": "mini",
        "a/b/c": "x",
        "bge-m3:latest": "bge-m3",
        "a" * 128: "b",
    }


@pytest.mark.parametrize(
    "origin",
    [
        *("https://a.example/", "https://a.example/app", "a.example", "https://", "https://A.example"),
        *("https://*.example", "null", "https://a.example:", "https://a b", "https://a.example?x"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused_at_the_start(origin: str) -> None:
    """It would match nothing, for ever."""
    with pytest.raises(Misconfigured, match="BLITZ_CORS_ORIGINS has"):
        Settings.from_env({"BLITZ_CORS_ORIGINS": f"https://b.example,{origin}"})


def test_origins_are_as_browsers_send_them() -> None:
    given = "https://a.example, http://localhost:3000,http://[::1]:8080,chrome-extension://abc,*"
    assert len(Settings.from_env({"BLITZ_CORS_ORIGINS": given}).cors_origins) == 5


def test_every_setting_is_described_and_read_somewhere() -> None:
    """No option without a line of description and a reader."""
    root = Path(__file__).parents[2]
    sources = [path for folder in ("functions", "shared") for path in (root / folder).rglob("*.py")]
    text = "\n".join(path.read_text() for path in sources if path.name != "settings.py")
    text += (root / "function_app.py").read_text()
    described = Settings.__doc__ or ""
    for name in Settings.__struct_fields__:
        assert re.search(rf"\b{name}\b[^:\n]*:", described), f"{name} is not described"
        assert re.search(rf"settings\.{name}\b", text), f"nothing reads {name}"
