"""Bulk embedding: files in one container become vectors in another."""
