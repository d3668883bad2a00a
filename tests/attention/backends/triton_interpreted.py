"""Runs the Triton kernels on a CPU, by Triton's interpreter, and prints how far they are from the reference: JSON, a line a case.

It is a process of its own, as Triton looks at TRITON_INTERPRET when it is imported.
"""

import gc
import json
import sys
import weakref

import torch
import triton.runtime.interpreter as interpreter

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, LayerRules, reference_attention
from hsa_factory.attention.backends.triton import attention, layout
from hsa_factory.attention.backends.triton.tiles import Tile, Tiles


SMALL = Tiles(Tile(32, 16, 4, 1), Tile(32, 16, 4, 1), Tile(16, 32, 4, 1))
NAN = float("nan")
PADDED = torch.tensor([[0] * 11 + [1] * 50, [1] * 50 + [0] * 11])
HOLES = torch.tensor([[1, 2, 2, 0, 1] * 10])
HIDE = HSAConfig(hide=[("GLOBAL", "NOISE"), (0, 0), (1, 2)])
TURNS = HSAConfig(noise_turns=1, noise_window=9, noise_decay=0.1, landmark_turns=3, landmark_window=5)


def numpy_takes_no_array_for_a_number():
    """Triton 3.6 makes a number of an array of one, which numpy 2.4 refuses."""
    usual = interpreter._patch_lang_tensor

    def patch(tensor, scope):
        usual(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch


def random_types(batch, length):
    return torch.randint(0, 3, (batch, length), generator=torch.Generator().manual_seed(length))


def draw(batch, heads, length, queries, sizes, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = ((queries, heads[0], sizes[0]), (length, heads[1], sizes[0]), (length, heads[1], sizes[1]))
    shapes += ((queries, heads[0], sizes[1]),)  # memory as models lay it: tokens, heads, numbers
    return [torch.randn(batch, *shape, generator=generator).to(dtype).transpose(1, 2) for shape in shapes]


def run(attend, tensors, plan, rules, **options):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors[:3]]
    output = attend(*leaves, plan, rules, **options)
    output = output if isinstance(output, torch.Tensor) else output[0]
    output.backward(tensors[3])
    return [output.detach(), *(leaf.grad for leaf in leaves)]


def compare(
    types,
    config,
    heads=(2, 1),
    queries=None,
    sizes=(16, 16),
    dtype=torch.float32,
    sliding=None,
    contiguous=False,
    scale=None,
    compiled=False,
    **plan,
):
    batch, length = types.shape
    queries = queries or length
    rules = LayerRules.of(config, sliding)
    plan = AttentionPlan.from_inputs(types, query_length=queries, **plan)
    tensors = draw(batch, heads, length, queries, sizes, dtype)
    if contiguous:
        tensors = [tensor.contiguous() for tensor in tensors]
    padding = torch.zeros(1, 1, 1, 1, dtype=torch.bool)
    if plan.is_padding is not None:
        padding = plan.is_padding[:, None, :, None]
        poisoned = [tensor.masked_fill(padding[:, :, -tensor.shape[2] :], NAN) for tensor in tensors]
    else:
        poisoned = tensors
    attend = attention.triton_attention
    if compiled:
        attend = torch.compile(
            lambda *tensors, **options: attention.triton_attention(*tensors, **options) * 1, backend="eager"
        )
    actual = run(attend, poisoned, plan, rules, scale=scale)
    clean = [tensor.float().masked_fill(padding[:, :, -tensor.shape[2] :], 0) for tensor in tensors]
    expected = run(reference_attention, clean, plan, rules, scale=scale)
    found = {"errors": [], "sizes": []}
    for got, wanted in zip(actual, expected):
        wanted = wanted.masked_fill(padding[:, :, -wanted.shape[2] :], 0)
        found["errors"].append(float((got.float() - wanted).abs().max() / wanted.abs().max().clamp(min=1)))
        found["sizes"].append(float(wanted.abs().max()))
    made = plan.once(attention.layout_maker(*tensors[:3]), rules)
    listed = made.long.view(-1, 4)
    found["pieces"] = listed[listed[:, 0] >= 0, 2].tolist()
    found["blocks"] = check_blocks(made, plan, rules, queries, heads[0] // heads[1])
    layout_of_it = weakref.ref(made)
    del made, plan, listed
    found["is_freed"] = compiled or layout_of_it() is None
    return found


def check_blocks(made, plan, rules, queries, group):
    """Return what is wrong with the blocks of keys that each block of rows computes; nothing: empty."""
    visible = plan.dense_bias(torch.float32, rules)[:, 0] > float("-inf")
    offset = plan.key_length - queries
    is_query = plan.document_ids[:, offset:] != 0
    visible &= is_query[:, :, None]
    keys = made.keys.view(plan.batch_size, 2, -1)[:, 0]
    table = made.table.view(plan.batch_size, -1, 6, 4)
    tile, wrong = SMALL.forward, []
    for row in range(plan.batch_size):
        for block, (ends, offsets, left_ends, left_offsets, right_ends, right_offsets) in enumerate(
            table[row].tolist()
        ):
            first, last = block * tile.rows // group, min((block * tile.rows + tile.rows - 1) // group, queries - 1)
            rows = [query for query in range(first, last + 1) if is_query[row, query]]
            full = listed(0, ends, offsets)
            partial = listed(0, left_ends, left_offsets) + listed(left_ends[-1], right_ends, right_offsets)
            if len({*full, *partial}) != len(full) + len(partial):
                wrong.append(f"row {row}, rows {block}: a block twice")
            seen = torch.zeros(plan.key_length, dtype=torch.bool)
            for place in {*full, *partial}:
                held = keys[row, place * tile.keys : (place + 1) * tile.keys]
                held = held[held >= 0].long()
                seen[held] = True
                pairs = visible[row][rows][:, held]
                if place in full and (len(held) < tile.keys or not pairs.all()):
                    wrong.append(f"row {row}, rows {block}: block {place} is not full")
                if not rules.hide and not pairs.any():
                    wrong.append(f"row {row}, rows {block}: block {place} in vain")
            if (visible[row][rows].any(0) & ~seen).any():
                wrong.append(f"row {row}, rows {block}: a key is left out")
    return wrong


def listed(start, ends, offsets):
    return [n + offset for begin, end, offset in zip([start, *ends], ends, offsets) for n in range(begin, end)]


def turns(batch, length, each):
    return torch.arange(length).expand(batch, -1) // each


CASES = {
    "padding left and right, NaN there": lambda: compare(
        random_types(2, 61), HSAConfig(noise_window=20), (4, 2), attention_mask=PADDED
    ),
    "hidden pairs": lambda: compare(random_types(1, 70), HIDE),
    "packed, three heads a key": lambda: compare(
        random_types(1, 90), HSAConfig(), (3, 1), attention_mask=torch.arange(90)[None] // 40 + 1
    ),
    "documents that interleave, padding": lambda: compare(
        random_types(1, 50), HSAConfig(noise_window=5), attention_mask=HOLES
    ),
    "turns, windows, a sliding window": lambda: compare(
        random_types(1, 90), TURNS, sliding=40, turn_ids=turns(1, 90, 13)
    ),
    "the last queries, gaps between keys": lambda: compare(
        random_types(1, 60), HSAConfig(noise_window=30), queries=9, positions=torch.arange(0, 120, 2)[None]
    ),
    "all GLOBAL, half precision": lambda: compare(torch.zeros(1, 80).long(), HSAConfig(), dtype=torch.float16),
    "all NOISE, other memory": lambda: compare(torch.full((1, 80), 2), HSAConfig(noise_window=7), contiguous=True),
    "eight heads a key, a scale": lambda: compare(random_types(1, 30), HSAConfig(noise_window=4), (8, 1), scale=0.3),
    "in a compiled model": lambda: compare(random_types(1, 40), HSAConfig(noise_window=3), compiled=True),
    "other sizes of heads": lambda: compare(random_types(1, 40), HSAConfig(noise_window=3), sizes=(24, 40)),
}


def main():
    gc.disable()  # what is freed is freed without it
    numpy_takes_no_array_for_a_number()
    attention.find_tiles = lambda *what: SMALL
    layout._FEWEST_STEPS, layout._PIECES = 1, 64
    for name in sys.argv[1:] or CASES:
        print(json.dumps({"case": name, **CASES[name]()}), flush=True)


if __name__ == "__main__":
    main()
