"""The key/value cache that lets go of keys which HSA can never see again."""
