"""Links that let anybody read one blob for a while, from a real Azurite over HTTPS."""

from __future__ import annotations

import base64
import json
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobServiceClient
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from shared.errors import StoreUnavailable
from shared.storage.azure import open_account
from shared.storage.azure_blobs import AzureBlobs
from shared.storage.azure_links import VALID, Links
from tests.azurite import ACCOUNT, KEY, running_azurite

KEY_NAME = "a folder/ä&b.jsonl"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of this machine's own address, signed by itself: its file, and its key's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


class Entra:
    """Tokens of the shape that Entra gives, for whoever only looks at their claims."""

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        now = int(time.time())
        claims = {"aud": "https://storage.azure.com", "iat": now, "nbf": now - 60, "exp": now + 3600}
        claims |= {"iss": "https://sts.windows.net/tenant/", "oid": "identity", "tid": "tenant"}
        parts = ({"alg": "none", "typ": "JWT"}, {**claims, "ver": "1.0", "appid": "app"})
        encoded = (base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
        return AccessToken(f"{b'.'.join(encoded).decode()}.AA", now + 3600)


@pytest.fixture(scope="module")
def service(certificate: tuple[Path, Path]) -> Iterator[BlobServiceClient]:
    with running_azurite(tls=certificate) as azurite:
        url = f"https://127.0.0.1:{azurite.port}/{ACCOUNT}"
        trusted: Any = {"connection_verify": str(certificate[0]), "api_version": "2023-11-03"}
        with BlobServiceClient(url, cast(Any, Entra()), **trusted) as service:
            yield service


@pytest.fixture
def web(certificate: tuple[Path, Path]) -> Iterator[httpx.Client]:
    """Somebody without an identity."""
    with httpx.Client(verify=ssl.create_default_context(cafile=str(certificate[0]))) as client:
        yield client


def test_a_link_reads_its_blob_and_does_nothing_else(
    service: BlobServiceClient, web: httpx.Client
) -> None:
    """Neither another blob, nor the container's list, nor a write; and a browser saves what comes."""
    blobs = AzureBlobs(service, "bulk-out")
    blobs.write(KEY_NAME, b"content")
    blobs.write("other", b"secret")
    link = Links(service, "bulk-out").to(KEY_NAME)
    response = web.get(link)
    assert (response.status_code, response.text) == (200, "content")
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-disposition"] == "attachment"
    assert web.get(link, headers={"range": "bytes=1-3"}).content == b"ont"
    signature = urlsplit(link).query
    base = link.split("/bulk-out/")[0]
    put = {"x-ms-blob-type": "BlockBlob"}
    refused = [
        web.get(f"{base}/bulk-out/other?{signature}"),
        web.get(f"{base}/bulk-out?restype=container&comp=list&{signature}"),
        web.put(link, content=b"x", headers=put),
        web.delete(link),
        web.get(link.split("?")[0]),
        web.get(link.replace("sig=", "sig=A")),
    ]
    assert [each.status_code for each in refused] == [403] * len(refused)


def test_a_link_ends_and_its_key_is_asked_for_once_a_day(service: BlobServiceClient) -> None:
    """Minutes after it was made; no link outlasts the key that signed it."""
    began = datetime.now(UTC).replace(microsecond=0)
    now = [began]
    links = Links(service, "bulk-out", lambda: now[0])
    keys = []
    for hours in (0, 1, 23, 24, 25):
        now[0] = began + timedelta(hours=hours)
        query = parse_qs(urlsplit(links.to("a")).query)
        ends = datetime.fromisoformat(query["se"][0])
        assert ends == now[0] + VALID
        assert ends <= datetime.fromisoformat(query["ske"][0])
        assert (query["sp"], query["spr"]) == (["r"], ["https"])
        keys.append(query["skt"][0])
    assert keys[:3] == keys[:1] * 3
    assert keys[3:] == keys[-1:] * 2
    assert keys[0] != keys[-1]


def test_an_identity_without_the_right_is_an_error_of_the_store() -> None:
    """Which whoever asked for a link survives."""

    class Refusing(BlobServiceClient):
        def get_user_delegation_key(self, *moments: Any, **options: Any) -> Any:
            error = HttpResponseError("no")
            error.status_code = 403
            raise error

    with pytest.raises(StoreUnavailable):
        Links(Refusing("https://a.blob.core.windows.net"), "c").to("b")


def test_a_connection_string_signs_no_links() -> None:
    """It has the account's key, which signs nothing that leaves the service."""
    parts = f"DefaultEndpointsProtocol=https;AccountName={ACCOUNT};AccountKey={KEY}"
    account = (
        "BlobEndpoint=https://a.blob.core.windows.net;QueueEndpoint=https://a.queue.core.windows.net"
    )
    assert open_account("", f"{parts};{account}").link is None
