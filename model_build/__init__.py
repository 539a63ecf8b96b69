"""Builds, measures and publishes models. Needs torch; no served process imports this package."""
