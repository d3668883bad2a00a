"""Serving, as in llamafactory.chat."""
