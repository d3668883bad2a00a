"""Attention over vLLM's paged cache by kernels of ours, for GPUs. Only what vLLM is handed imports vLLM."""
