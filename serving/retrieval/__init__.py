"""Retrieval: a few hundred candidates for a user out of the whole catalogue, before ranking."""
