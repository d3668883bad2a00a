"""Where the documents of a packed row begin, however a forward is told: honoured or refused, never dropped."""

from .statements import PACKED_INPUTS, find_documents, refuse_packed, without_documents


__all__ = ["PACKED_INPUTS", "find_documents", "refuse_packed", "without_documents"]
