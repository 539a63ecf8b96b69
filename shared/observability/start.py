"""Where this process's telemetry goes, from settings. An exporter is imported where one is to start."""

from __future__ import annotations

from shared.observability import metrics
from shared.settings import Settings


def start_export(settings: Settings) -> None:
    """Begin to send this process's telemetry to Azure, if it is told where. Raises Misconfigured."""
    if settings.applicationinsights_connection_string:
        # Imported here: it takes half a second, and outside of Azure nobody needs it.
        from shared.observability.azure.credential import credential_of
        from shared.observability.azure.export import AzureExport

        AzureExport(
            settings.applicationinsights_connection_string,
            settings.role,
            metrics.PROCESS,
            credential=credential_of(settings.applicationinsights_authentication_string),
        ).start()
