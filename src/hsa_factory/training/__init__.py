"""Training without LLaMA-Factory: conversations as rows for any trainer. Imports neither llamafactory nor trl."""

from .batched import encode_conversations
from .encoding import ConversationLeftOut, encode_conversation


__all__ = ["ConversationLeftOut", "encode_conversation", "encode_conversations"]
