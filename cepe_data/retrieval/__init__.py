"""Retrieval: embedded passages, exact search, and their check."""
