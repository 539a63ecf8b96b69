"""What every role shares: contracts, the model layer, routing. Imports nothing else of ours."""

__version__ = "0.1.0"
"""Of the whole project: /openapi.json and /info tell it, pyproject.toml and CHANGELOG.md go by it."""
