"""What telemetry shows Application Insights to be let in: a managed identity's token, or nothing.

Does not know what is sent, nor how.
"""

from __future__ import annotations

import uuid

from azure.core.credentials import TokenCredential
from azure.identity import ManagedIdentityCredential

from shared.errors import Misconfigured


def credential_of(authentication_string: str) -> TokenCredential | None:
    """What APPLICATIONINSIGHTS_AUTHENTICATION_STRING asks for; None if it is empty. Asks nobody yet.

    Without a ClientId it is the system-assigned identity. Raises Misconfigured.
    """
    if not authentication_string:
        return None
    parts = [part.partition("=") for part in authentication_string.strip(" ;").split(";")]
    given = {name.strip().lower(): value.strip() for name, _, value in parts}
    client_id = given.pop("clientid", None)
    if given != {"authorization": "AAD"} or not (client_id is None or _is_guid(client_id)):
        raise Misconfigured(
            "APPLICATIONINSIGHTS_AUTHENTICATION_STRING must be Authorization=AAD, "
            "and ;ClientId=GUID for a user-assigned identity"
        )
    return ManagedIdentityCredential(client_id=client_id)


def _is_guid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True
