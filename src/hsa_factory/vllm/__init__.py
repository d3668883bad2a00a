"""HSA checkpoints on vLLM: a plugin, found by entry points. The only room that imports vllm, and nobody imports it.

Importing this package changes nothing; vLLM calls `plugin.register` in each of its processes.
"""
