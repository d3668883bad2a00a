"""Conversations as agents leave them, read as messages that LLaMA-Factory knows. One file a family of formats."""
