"""Entry point of Azure Functions: BLITZ_ROLE selects the app."""

from __future__ import annotations

import importlib
import os

from shared.settings import Settings

_settings = Settings.from_env(os.environ)
app = importlib.import_module(f"functions.{_settings.role}").function_app(_settings)
