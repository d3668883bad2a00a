"""`model.generate` with HSA."""
