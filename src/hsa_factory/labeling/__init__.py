"""Which type a token has."""
