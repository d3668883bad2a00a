"""Does it pay? HSA and Feedback in real environments, from gold episodes to tables: ``python -m experiments``."""
