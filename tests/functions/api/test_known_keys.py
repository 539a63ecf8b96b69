"""Keys with names: which count when, over a document in a folder and in Azurite that is read again."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from prometheus_client import CollectorRegistry

from functions import keys
from functions.api.app import create_app
from functions.api.known_keys import KnownKeys, connect_keys, open_document
from shared.cards import ModelCard
from shared.dialects.operations import PATHS
from shared.errors import BlitzError, InvalidInput, Misconfigured
from shared.models.catalogue import Catalogue
from shared.observability.metrics import MAX_KEY_NAMES, Telemetry
from shared.settings import Settings
from tests.azurite import Azurite, running_azurite
from tests.fakes.catalogue import FakeCatalogue
from tests.fakes.clock import Clock
from tests.fakes.inference import FakeInference
from tests.patience import PATIENCE_S

NOW = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC
A, B, C = "a-key-of-the-search-team", "another-key-of-the-search-team", "a-key-of-the-batch-team"
OWNER = "0123456789abcdef"
CARDS = [ModelCard(name, "r", "t", "a", "mean", 2, 9) for name in ("m", "p", "s", "l")]
BODY = {"model": "m", "input": "a"}


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def caller(name: str, *entries: dict[str, str], owner: str = OWNER) -> dict[str, Any]:
    return {"name": name, "owner": owner, "keys": list(entries)}


def entry(key: str, **times: str) -> dict[str, str]:
    return {"sha256": sha256(key), **times}


def document_of(*callers: dict[str, Any]) -> bytes:
    return json.dumps({"callers": callers}).encode()


class Place:
    """Where a keys document lies: its URL, and how people write it by hand."""

    def __init__(self, url: str, connection_string: str = "") -> None:
        self.url = url
        self.connection_string = connection_string
        self.document = open_document(url, connection_string)

    def write(self, data: bytes) -> None:
        self.document.update(lambda _: data)


@pytest.fixture(scope="module")
def azurite() -> Iterator[Azurite]:
    with running_azurite() as azurite:
        yield azurite


@pytest.fixture(params=["folder", "blob"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Each kind of place, without a document."""
    if request.param == "folder":
        yield Place(f"file://{tmp_path / 'keys' / 'keys.json'}")
        return
    azurite: Azurite = request.getfixturevalue("azurite")
    with azurite.container() as container:
        yield Place(f"{container.url}/keys.json", azurite.connection_string)


@pytest.fixture
def metrics() -> Telemetry:
    return Telemetry(CollectorRegistry())


def find(known: KnownKeys, key: str) -> str:
    """The name that a key is known by; "" if it does not count."""
    found = known.find([hashlib.sha256(key.encode()).digest()])
    return found.name if found else ""


def shown(metrics: Telemetry) -> list[str]:
    """The series of keys, without the help."""
    return [line for line in metrics.render().decode().splitlines() if line.startswith("blitz_key")]


@pytest.mark.parametrize(
    ("times", "counts"),
    [
        ({}, True),
        ({"expires": "2027-01-15T08:00:01Z"}, True),
        ({"expires": "2027-01-15T08:00:00Z"}, False),
        ({"expires": "2027-01-15T09:00:01+01:00"}, True),
        ({"not_before": "2027-01-15T08:00:00Z"}, True),
        ({"not_before": "2027-01-15T08:00:01Z"}, False),
        ({"not_before": "2027-01-01T00:00:00Z", "expires": "2027-02-01T00:00:00Z"}, True),
    ],
)
def test_a_key_counts_from_and_until(
    times: dict[str, str], counts: bool, place: Place, metrics: Telemetry
) -> None:
    """To the second; in whatever time zone it is written."""
    place.write(document_of(caller("search", entry(A, **times))))
    assert bool(find(KnownKeys((), place.document, metrics, Clock(NOW)), A)) is counts


def test_a_key_is_replaced_without_a_restart(place: Place, metrics: Telemetry) -> None:
    """Two count at once; once the old one is taken away, it alone does not. Its files' owner stays."""
    place.write(document_of(caller("search", entry(A))))
    known = KnownKeys((), place.document, metrics, Clock(NOW))
    assert (find(known, A), find(known, B)) == ("search", "")
    place.write(document_of(caller("search", entry(A), entry(B))))
    known.refresh()
    assert (find(known, A), find(known, B)) == ("search", "search")
    place.write(document_of(caller("search", entry(B))))
    known.refresh()
    assert (find(known, A), find(known, B)) == ("", "search")
    found = known.find([hashlib.sha256(B.encode()).digest()])
    assert found is not None
    assert found.owner == OWNER


def test_the_document_is_read_again_and_again(place: Place, metrics: Telemetry) -> None:
    """In a thread of its own, every so many seconds, asked or not."""
    known = KnownKeys((), place.document, metrics, Clock(NOW))
    waited: list[float] = []
    over = threading.Event()

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        if len(waited) == 1:
            place.write(document_of(caller("search", entry(A))))
            return False
        over.set()
        return True

    known.watch(60.0, wait)
    assert over.wait(PATIENCE_S)
    assert (waited, find(known, A)) == ([60.0, 60.0], "search")


@pytest.mark.parametrize("data", [b"", b"{", b'{"callers": 1}', b"\xff", document_of(caller("A key"))])
def test_what_was_read_last_counts_on(
    data: bytes, place: Place, metrics: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """A document that is spoilt, while it runs, shuts nobody out; a metric and the log tell."""
    place.write(document_of(caller("search", entry(A))))
    known = KnownKeys((), place.document, metrics, Clock(NOW))
    place.write(data)
    known.refresh()
    assert find(known, A) == "search"
    assert "blitz_keys_read_failures 1.0" in shown(metrics)
    assert "the keys could not be read, the last ones count" in caplog.text


def test_a_document_that_is_deleted_shuts_nobody_out(tmp_path: Path, metrics: Telemetry) -> None:
    """Whoever means to shut out all writes a document without callers."""
    place = Place(f"file://{tmp_path}/keys.json")
    place.write(document_of(caller("search", entry(A))))
    known = KnownKeys((), place.document, metrics, Clock(NOW))
    (tmp_path / "keys.json").unlink()
    known.refresh()
    assert find(known, A) == "search"
    place.write(document_of())
    known.refresh()
    assert find(known, A) == ""


WRONG = [
    (b"{", "is not valid"),
    (b'{"callers": [], "extra": 1}', "extra"),
    (document_of({"name": "a", "keys": []}), "owner"),
    (document_of(caller("Search", entry(A))), "lower-case letters"),
    (document_of(caller(sha256(A), entry(A))), "1 to 32"),
    (document_of(caller("a", entry(A), owner="me")), "a has an owner that is not 16"),
    (document_of(caller("a", {"sha256": A})), "a has a sha256 that is not 64"),
    (document_of(caller("a", entry(A, expires="soon"))), "expires"),
    (document_of(caller("a", entry(A, expires="2027-01-15T08:00:00"))), "expires"),
    (document_of(caller("a", *[entry(f"{A}{n}") for n in range(11)])), "a has 11 keys; 10 is the most"),
    (document_of(*[caller(f"a{n}") for n in range(201)]), "201 callers; 200 is the most"),
    (document_of(caller("a", entry(A)), caller("a", entry(B), owner="f" * 16)), "the same name"),
    (document_of(caller("a", entry(A)), caller("b", entry(B))), "the same owner"),
    (document_of(caller("a", entry(A)), caller("b", entry(A), owner="f" * 16)), "the same key"),
]


@pytest.mark.parametrize(("data", "reason"), WRONG, ids=[reason for _, reason in WRONG])
def test_a_document_that_is_wrong_stops_the_start(
    data: bytes, reason: str, tmp_path: Path, metrics: Telemetry
) -> None:
    """The message names the setting and what is wrong, and quotes neither key nor hash."""
    (tmp_path / "keys.json").write_bytes(data)
    with pytest.raises(Misconfigured, match="BLITZ_API_KEYS") as refused:
        connect_keys(Settings(api_keys=f"file://{tmp_path}/keys.json"), metrics)
    assert reason in refused.value.message
    assert A not in refused.value.message
    assert sha256(A) not in refused.value.message


@pytest.mark.parametrize(
    "url",
    [
        "keys.json",
        "file://",
        "file://keys.json",
        "file:///tmp/",
        "https://",
        "https://a/b?sig=1",
        "s3://a/b",
    ],
)
def test_a_place_that_cannot_be_is_refused(url: str) -> None:
    """The message says which setting it is, and what would be right."""
    with pytest.raises(Misconfigured, match=r"BLITZ_API_KEYS.*keys\.json"):
        open_document(url)


def client_of(known: KnownKeys, metrics: Telemetry) -> httpx.AsyncClient:
    app = create_app(
        Settings(api_keys="file://x/keys.json"),
        FakeInference(),
        cast(Catalogue, FakeCatalogue(CARDS)),
        metrics,
        keys=known,
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router")


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/models", "/nothing", *PATHS])
async def test_an_expired_key_is_told_nothing(
    path: str, tmp_path: Path, metrics: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """Byte for byte the answer that an unknown key gets. The operator sees whose it was, once."""
    caplog.set_level(logging.INFO)
    place = Place(f"file://{tmp_path}/keys.json")
    over, later = {"expires": "2027-01-01T00:00:00Z"}, {"not_before": "2027-02-01T00:00:00Z"}
    place.write(document_of(caller("search", entry(A, **over), entry(B, **later))))
    async with client_of(KnownKeys((), place.document, metrics, Clock(NOW)), metrics) as client:
        answers = set()
        for key in (A, A, B, "a-key-of-nobody-at-all"):
            answer = await client.post(path, json=BODY, headers={"api-key": key})
            headers = {**answer.headers, "x-request-id": ""}
            answers.add((answer.status_code, answer.content, str(headers)))
    assert len(answers) == 1
    assert {status for status, _, _ in answers} == {401}
    assert 'blitz_key_refusals{key="search",reason="expired"} 2.0' in shown(metrics)
    assert 'blitz_key_refusals{key="search",reason="not_yet"} 1.0' in shown(metrics)
    assert caplog.text.count("a key of search has expired and is refused") == 1


@pytest.mark.anyio
async def test_use_is_counted_by_name(tmp_path: Path, metrics: Telemetry) -> None:
    """Requests, and tokens of those that were answered; no series or log has a key or a hash."""
    place = Place(f"file://{tmp_path}/keys.json")
    place.write(document_of(caller("search", entry(A), entry(B)), caller("nightly", owner="f" * 16)))
    async with client_of(
        KnownKeys((sha256(C),), place.document, metrics, Clock(NOW)), metrics
    ) as client:
        for key in (A, B, C):
            answer = await client.post("/v1/embeddings", json=BODY, headers={"api-key": key})
            assert answer.status_code == 200
        tokens = answer.json()["usage"]["total_tokens"]
        assert (await client.get("/v1/models", headers={"api-key": A})).status_code == 200
    assert [line for line in shown(metrics) if "{" in line] == [
        'blitz_key_requests{key="search"} 3.0',
        'blitz_key_requests{key="unnamed"} 1.0',
        f'blitz_key_tokens{{key="search"}} {2.0 * tokens}',
        f'blitz_key_tokens{{key="unnamed"}} {1.0 * tokens}',
    ]
    rendered = metrics.render().decode()
    assert not any(secret in rendered for key in (A, B, C) for secret in (key, sha256(key)))


def test_names_in_metrics_are_bounded(metrics: Telemetry) -> None:
    """However often a document gives its callers other names."""
    for number in range(MAX_KEY_NAMES + 50):
        metrics.key_used(f"name-{number}")
    series = [line for line in shown(metrics) if line.startswith("blitz_key_requests{")]
    assert len(series) == MAX_KEY_NAMES + 1
    assert 'blitz_key_requests{key="other"} 50.0' in series


def test_a_key_that_ends_soon_is_told_of(
    tmp_path: Path, metrics: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a day, by name, from 14 days before; not of one that has a successor."""
    clock, place = Clock(NOW), Place(f"file://{tmp_path}/keys.json")
    soon, late = {"expires": "2027-01-28T08:00:00Z"}, {"expires": "2027-06-01T00:00:00Z"}
    place.write(
        document_of(
            caller("alone", entry(A, **soon)),
            caller("renewed", entry(B, **soon), entry(C, **late), owner="f" * 16),
        )
    )
    known = KnownKeys((), place.document, metrics, clock)
    known.refresh()
    assert caplog.messages == ["the last key of alone expires in 13 days"]
    clock.now += 86_400
    known.refresh()
    assert caplog.messages[1:] == ["the last key of alone expires in 12 days"]
    ends = [line for line in shown(metrics) if line.startswith("blitz_key_expires_timestamp_seconds{")]
    assert ends == [
        'blitz_key_expires_timestamp_seconds{key="alone"} 1.8011232e+09',
        'blitz_key_expires_timestamp_seconds{key="renewed"} 1.811808e+09',
    ]
    place.write(document_of(caller("renewed", entry(C), owner="f" * 16)))
    known.refresh()
    assert not [
        line for line in shown(metrics) if line.startswith("blitz_key_expires_timestamp_seconds{")
    ]


@pytest.mark.anyio
async def test_a_document_that_cannot_be_reached_yet_is_no_refusal(
    tmp_path: Path, metrics: Telemetry
) -> None:
    """A key may be in it: 503 and when to come again. Those of the settings count already."""
    place = Place(f"file://{tmp_path}/away/keys.json")
    known = KnownKeys((sha256(C),), place.document, metrics, Clock(NOW))
    async with client_of(known, metrics) as client:

        async def status(headers: dict[str, str]) -> int:
            return (await client.get("/v1/models", headers=headers)).status_code

        assert await status({"api-key": C}) == 200
        assert await status({"api-key": A}) == 503
        assert await status({}) == 401
        place.write(document_of(caller("search", entry(A))))
        known.refresh()
        assert [await status({"api-key": key}) for key in (A, B, C)] == [200, 401, 200]


def test_of_a_key_in_both_places_the_document_tells(tmp_path: Path, metrics: Telemetry) -> None:
    """So that a key that had no name can be given one, and an end."""
    place = Place(f"file://{tmp_path}/keys.json")
    place.write(document_of(caller("search", entry(A, expires="2027-01-01T00:00:00Z"))))
    assert find(KnownKeys((sha256(A).upper(),), place.document, metrics, Clock(NOW)), A) == ""


def run(place: Place, *arguments: str, status: int = 0) -> None:
    environ = {"BLITZ_API_KEYS": place.url, "BLITZ_STORAGE_CONNECTION_STRING": place.connection_string}
    assert keys.main(arguments, {name: value for name, value in environ.items() if value}) == status


def test_the_command_keeps_the_document(
    place: Place, metrics: Telemetry, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key is added, a second one, the first one revoked: the router knows them, and one owner."""
    made = []
    for arguments in (["--expires", "90d"], []):
        run(place, "add", "search", *arguments)
        key, digest, name = capsys.readouterr().out.splitlines()
        made.append(key.split()[1])
        assert digest == f"hash: {sha256(made[-1])}"
        assert name.startswith("name: search, ")
    known = KnownKeys((), place.document, metrics)
    found = [known.find([hashlib.sha256(key.encode()).digest()]) for key in made]
    first_owner = hashlib.sha256(bytes.fromhex(sha256(made[0]))).hexdigest()[:16]
    assert [(each.name, each.owner) for each in found if each] == [("search", first_owner)] * 2
    run(place, "revoke", "search", "--hash", sha256(made[0])[:8])
    known.refresh()
    assert [find(known, key) for key in made] == ["", "search"]
    capsys.readouterr()
    run(place, "list")
    assert capsys.readouterr().out.splitlines() == [
        f"search  owner {first_owner}",
        f"    {sha256(made[1])[:12]}  never expires",
    ]
    run(place, "revoke", "search")
    run(place, "add", "search")
    run(place, "list")
    assert f"search  owner {first_owner}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["add", "Search"], "lower-case letters"),
        (["add", "search", "--expires", "soon"], "'soon' is no time"),
        (["add", "search", "--expires", "2020-01-01"], "--expires is over"),
        (["add", "search", "--expires", "1d", "--not-before", "2d"], "before --not-before"),
        (["revoke", "nobody"], "there is no caller 'nobody'; there are: search"),
        (["revoke", "search", "--hash", "zz"], "no key whose hash begins so"),
        (["list", "--document", "s3://a/b"], "--document"),
    ],
)
def test_the_command_refuses_and_changes_nothing(
    arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and a line that says why; no key is shown."""
    place = Place(f"file://{tmp_path}/keys.json")
    place.write(document_of(caller("search", entry(A))))
    before = place.document.read()
    run(place, *arguments, status=2)
    shown = capsys.readouterr()
    assert reason in shown.err
    assert shown.out == ""
    assert place.document.read() == before


def test_a_spoilt_document_is_not_written_over(tmp_path: Path) -> None:
    """Whoever spoilt it can mend it: what is there is not lost."""
    place = Place(f"file://{tmp_path}/keys.json")
    place.write(b"{")
    run(place, "add", "search", status=2)
    assert place.document.read() == b"{"


def test_without_a_document_the_command_says_how_to_name_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert keys.main(["list"], {}) == 2
    assert "BLITZ_API_KEYS" in capsys.readouterr().err


def test_all_who_change_the_document_at_once_get_their_way(place: Place) -> None:
    """None of eight callers that are added side by side is lost."""
    documents = [open_document(place.url, place.connection_string) for _ in range(8)]

    def add(number: int) -> None:
        def change(data: bytes | None) -> bytes:
            callers = json.loads(data)["callers"] if data else []
            return document_of(*callers, caller(f"a{number}", owner=f"{number:016x}"))

        documents[number].update(change)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    data = place.document.read()
    assert data is not None
    assert {each["name"] for each in json.loads(data)["callers"]} == {f"a{n}" for n in range(8)}


def test_the_router_is_not_open_for_want_of_a_document() -> None:
    """An app that was not handed the keys it is to know does not start."""
    with pytest.raises(Misconfigured, match="connect_keys"):
        create_app(
            Settings(api_keys="file://x/keys.json"),
            FakeInference(),
            cast(Catalogue, FakeCatalogue(CARDS)),
        )


def test_without_keys_nobody_needs_one() -> None:
    assert connect_keys(Settings()) is None


def test_a_change_that_raises_leaves_what_was_there(place: Place) -> None:
    place.write(document_of())

    def refuse(_: bytes | None) -> bytes:
        raise InvalidInput("no")

    with pytest.raises(BlitzError, match="no"):
        place.document.update(refuse)
    assert place.document.read() == document_of()
