"""shared.backends.credential: tokens are fetched when needed, once, and not after they end."""

from __future__ import annotations

import asyncio
import threading

import pytest
from azure.core.exceptions import ClientAuthenticationError

from shared.backends.credential import REFRESH_BEFORE_S, EntraToken, authorization_of, shared_secret
from shared.errors import Misconfigured, Unavailable
from shared.settings import Settings
from tests.fakes.credential import FakeCredential

pytestmark = pytest.mark.anyio


async def test_a_token_is_for_the_audience_and_used_until_shortly_before_it_ends() -> None:
    """One fetch serves everyone until five minutes before the end, then there is a new one."""
    credential = FakeCredential()
    token = EntraToken("api://backend", credential, credential.clock)
    assert {await token() for _ in range(3)} == {"Bearer token-1"}
    credential.now += 3600 - REFRESH_BEFORE_S - 1
    assert await token() == "Bearer token-1"
    credential.now += 1
    assert await token() == "Bearer token-2"
    assert credential.scopes == [("api://backend/.default",)] * 2


async def test_fetching_blocks_nobody_and_happens_once() -> None:
    """Many first callers, one fetch, in a thread: it may take seconds."""
    credential = FakeCredential()
    token = EntraToken("api://backend", credential, credential.clock)
    assert set(await asyncio.gather(*(token() for _ in range(20)))) == {"Bearer token-1"}
    assert threading.get_ident() not in credential.threads


async def test_no_token_is_unavailable_and_tried_again() -> None:
    """The identity service's reasons stay inside; the next call asks anew."""
    credential = FakeCredential()
    token = EntraToken("api://backend", credential, credential.clock)
    credential.error = ClientAuthenticationError("tenant 1234 says no")
    with pytest.raises(Unavailable) as caught:
        await token()
    assert "1234" not in str(caught.value)
    credential.error = None
    assert await token() == "Bearer token-2"


async def test_settings_choose_what_is_shown() -> None:
    """A secret, an identity, nothing; both at once cannot be meant."""
    assert authorization_of(Settings()) is None
    secret = authorization_of(Settings(backend_secret="s"))
    assert secret is not None
    assert await secret() == await shared_secret("s")() == "Bearer s"
    assert isinstance(authorization_of(Settings(backend_audience="api://b")), EntraToken)
    with pytest.raises(Misconfigured, match="BLITZ_BACKEND_AUDIENCE"):
        authorization_of(Settings(backend_secret="s", backend_audience="api://b"))
