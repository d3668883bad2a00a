"""The worker is told of every request that comes, moves and goes: a logits processor that changes no logit."""
