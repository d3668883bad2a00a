"""Attention over vLLM's paged cache by one fused kernel, for GPUs. What decides what is seen imports no vLLM."""
