"""`hsa-factory inspect --cost`: what the rules cost on the data, before anything is trained."""

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

from rich.console import Console

from ..inspection.attention_time import attention_time
from ..inspection.cost_table import cost_table, cost_values, documents_of
from ..inspection.inspected_sample import InspectedSample
from ..inspection.model_shape import ModelShape
from ..inspection.sample_cost import sample_cost
from ..user_errors import UserError


if TYPE_CHECKING:
    from ..llamafactory.inspect.prepared_data import PreparedData


def write_cost(out: TextIO, prepared: "PreparedData", samples: Iterable[InspectedSample], as_json: bool) -> int:
    """Write what samples cost, by length.

    Args:
        out: Where to.
        prepared: The data.
        samples: Those to count.
        as_json: One JSON object instead of a table.

    Returns:
        How many rows were counted.

    Raises:
        UserError: If the file has no rules, or turn numbers that they need are not known.
    """
    config = prepared.hsa_config
    if config is None:
        raise UserError("--cost: the training file has no hsa block, so that nothing is hidden and nothing is saved.")
    shape = ModelShape.of(prepared.load_model_config(), config)
    needs_turns = config.has_turns
    costs, rows = [], 0
    for sample in samples:
        if needs_turns and sample.turn_ids is None:
            raise UserError(
                f"--cost: row {sample.index} of the tokenized data has no turn numbers, which the rules need: tokenize "
                "the data anew (remove tokenized_path)."
            )
        costs += [sample_cost(tokens, shape) for tokens in documents_of(sample, needs_turns)]
        rows += 1
    if not costs:
        return rows

    clock = attention_time(shape, config.backend, lambda line: print(f"hsa-factory inspect: {line}", file=sys.stderr))
    values = cost_values(costs, clock)
    if as_json:
        print(json.dumps(values, ensure_ascii=False), file=out)
        return rows
    console = Console(file=out, highlight=False)
    console = console if console.is_terminal else Console(file=out, highlight=False, width=160)
    console.print(cost_table(values))
    dtype = str(shape.dtype).removeprefix("torch.")
    console.print(
        f"{shape.layers} layers, {shape.heads} heads of {shape.head_size}, {shape.key_heads} of them with keys; cache in "
        f"{dtype}. Attention of one sample in all layers, forward and backward, as on {clock.where}."
    )
    return rows
