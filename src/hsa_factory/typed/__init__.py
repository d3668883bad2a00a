"""Texts and ids that carry their semantic type."""
