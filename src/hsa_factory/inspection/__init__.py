"""Seeing what a model sees and is trained on: terminal, JSON, HTML."""
