"""Bulk embedding: files in a container become vectors in another, whatever dies on the way."""
