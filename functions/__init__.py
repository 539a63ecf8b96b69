"""The apps: router, CPU backend, and the local runner that serves them on one machine."""
