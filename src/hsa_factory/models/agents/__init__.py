"""Agents that play many episodes side by side on one cache."""

from .agent_batch import AgentBatch
from .reply import Reply
from .report import AgentReport, RowReport


__all__ = ["AgentBatch", "AgentReport", "Reply", "RowReport"]
