"""Loading tokenizers and models, as in llamafactory.model."""
