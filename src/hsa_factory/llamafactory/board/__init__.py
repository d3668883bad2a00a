"""LLaMA Board with HSA and Feedback: their options, what it previews and starts, its chat, its view of the data.

Nothing here is imported before the Board is asked for: gradio takes seconds.
"""
