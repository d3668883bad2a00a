"""`model.generate` with HSA: typed prompts read in pieces, tokens typed as they are generated."""

from .rule_tagger import RuleTagger, make_tagger


__all__ = ["RuleTagger", "make_tagger"]
