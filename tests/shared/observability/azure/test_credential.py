"""The string that Azure sets beside the connection string."""

from __future__ import annotations

import pytest
from azure.identity import ManagedIdentityCredential

from shared.errors import Misconfigured
from shared.observability.azure.credential import credential_of

CLIENT_ID = "00000000-0000-0000-0000-00000000c11e"


def test_without_a_string_there_is_no_credential() -> None:
    """The instrumentation key alone lets telemetry in, where the resource allows that."""
    assert credential_of("") is None


@pytest.mark.parametrize(
    ("string", "client_id"),
    [
        (f"ClientId={CLIENT_ID};Authorization=AAD", CLIENT_ID),
        (f"Authorization=AAD;ClientId={CLIENT_ID};", CLIENT_ID),
        (f" authorization = AAD ; clientid = {CLIENT_ID} ", CLIENT_ID),
        ("Authorization=AAD", None),
    ],
)
def test_the_string_names_a_managed_identity(
    string: str, client_id: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order that Bicep writes, in Microsoft's, and without an id: the system-assigned one."""
    made: list[object] = []

    class Kept(ManagedIdentityCredential):
        def __init__(self, *, client_id: str | None = None) -> None:
            made.append(client_id)

    monkeypatch.setattr("shared.observability.azure.credential.ManagedIdentityCredential", Kept)
    assert isinstance(credential_of(string), Kept)
    assert made == [client_id]


@pytest.mark.parametrize(
    "string",
    [
        "AAD",
        ";",
        CLIENT_ID,
        "Authorization=ikey",
        f"ClientId={CLIENT_ID}",
        "Authorization=AAD;ClientId=",
        "Authorization=AAD;ClientId=id-router",
        f"Authorization=AAD;ClientId={CLIENT_ID};Tenant=x",
    ],
)
def test_a_string_that_is_none_is_refused_and_not_shown(string: str) -> None:
    """At the start, naming the variable and its form."""
    with pytest.raises(Misconfigured) as refused:
        credential_of(string)
    assert str(refused.value) == (
        "APPLICATIONINSIGHTS_AUTHENTICATION_STRING must be Authorization=AAD, "
        "and ;ClientId=GUID for a user-assigned identity"
    )
