"""Entry point of Azure Functions: BLITZ_ROLE selects the app."""

from __future__ import annotations

import gc
import importlib
import os

# What a start makes stays: to look through it for garbage, again and again, is a tenth of the start.
gc.disable()

from shared.settings import Settings  # noqa: E402

_settings = Settings.from_env(os.environ)
app = importlib.import_module(f"functions.{_settings.role}").function_app(_settings)
gc.freeze()  # no later collection looks through it either
gc.enable()
