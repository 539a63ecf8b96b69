"""A third host beside Functions and one machine: the same service on a Ray cluster."""
