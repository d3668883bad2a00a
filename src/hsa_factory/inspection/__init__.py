"""Seeing what a model sees: terminal and JSON."""
