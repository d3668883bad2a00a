"""From data sets to batches, as in llamafactory.data."""
