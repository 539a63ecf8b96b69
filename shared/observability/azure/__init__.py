"""Telemetry to Application Insights: the only folder that knows opencensus-ext-azure."""
