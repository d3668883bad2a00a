"""The attention of the next tokens, planned before they come: most are of the type of the token before."""

import torch

from ..attention import AttentionPlan
from ..attention.query_plan import QueryPlan
from ..config import HSAConfig
from .cache.key_table import Keys, KeyTable


_STEPS = 16  # at most
_CELLS = 2**20  # of the bias of all rows, at most


class Lookahead:
    """Plans for tokens that come one at a time, made together as long as each row's type stays the same.

    A plan a token would cost more than the attention of a small model. Nothing is looked ahead at first, and twice as
    far whenever all that was foreseen has come.

    Args:
        last_positions: (B, 1) int64, positions of each row's last token.
        types: (B, 1) int64, types of the token that comes.
        tables: The keys held, which then foresee those to come.
        config: The rules.
        before: The lookahead that this one follows; None: something else came.

    Attributes:
        steps: How many tokens are foreseen.
        taken: How many of them have come.
    """

    def __init__(
        self,
        last_positions: torch.Tensor,
        types: torch.Tensor,
        tables: dict[tuple[int | None, bool], KeyTable],
        config: HSAConfig,
        before: "Lookahead | None",
    ) -> None:
        self._types, self._config, self._inference = types.tolist(), config, torch.is_inference_mode_enabled()
        rows, held = types.shape[0], max((len(table) for table in tables.values()), default=0)
        steps = 1
        if before is not None and before.taken == before.steps and before._types == self._types:
            steps = max(1, min(2 * before.steps, _STEPS, _CELLS // (rows * (held + _STEPS))))
        self.steps, self.taken = steps, 0

        types = types.expand(-1, steps)
        ahead = torch.arange(1, steps + 1, device=types.device)
        self._keys = Keys(last_positions + ahead, types, torch.ones_like(types, dtype=torch.bool))
        self._plans = {}
        for key, table in tables.items():
            keys = table.foresee(self._keys)
            self._plans[key] = AttentionPlan.of_cached_keys(
                keys.semantic_ids, config, keys.is_real, keys.positions, steps
            )

    def fits(self, types: torch.Tensor, config: HSAConfig) -> bool:
        """Whether the next tokens, of types (B, 1), are as foreseen."""
        return (
            self.taken < self.steps
            and types.tolist() == self._types
            and config is self._config
            and self._inference == torch.is_inference_mode_enabled()
        )

    def plans(self) -> dict[tuple[int | None, bool], QueryPlan]:
        """Return the next token's plan, for each set of rules."""
        return {key: QueryPlan(plan, self.taken) for key, plan in self._plans.items()}

    def keys(self) -> Keys:
        """Return what is known of the tokens that have come."""
        return self._keys.map(lambda tensor: tensor[:, : self.taken])
