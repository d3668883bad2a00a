"""Rows looked up in a table of tokens: whatever is joined, packed or padded, each token keeps what is known of it."""

import json
from array import array

import numpy as np
import pytest
from datasets import Dataset, Features
from hypothesis import given
from hypothesis import strategies as st

from hsa_factory.llamafactory.data.token_table import Tokens, TokenTable, to_lists, to_table
from hsa_factory.typed.ids import type_token_ids


PADDING = 7
token = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2), st.sampled_from(["", "weight"]), st.booleans())
sample = st.tuples(st.sampled_from("ab"), st.lists(token, min_size=1, max_size=6))
batches = st.lists(sample, max_size=6)
layouts = st.lists(st.tuples(st.sets(st.integers(0, 5)), st.integers(0, 3)), min_size=1, max_size=4)


def fill(batch):
    """Return a table with the samples, and the places of each."""
    table, places = TokenTable(), []
    for number, (source, tokens) in enumerate(batch):
        ids = [type_token_ids([token_id], kind, reason)[0] for token_id, kind, reason, _ in tokens]
        labels = [token_id if is_label else -100 for token_id, _, _, is_label in tokens]
        places.append(table.add(Tokens.read(ids, labels), {"dataset": source, "index": number}))
    return table, places


@given(batches, layouts)
def test_packed_and_padded_rows(batch, layout):
    table, places = fill(batch)
    rows = {"input_ids": [], "labels": [], "images": [None] * len(layout)}
    expected = []
    for numbers, padding in layout:
        chosen = [number for number in sorted(numbers, reverse=True) if number < len(batch)]
        rows["input_ids"].append([p for n in chosen for p in places[n][0]] + [PADDING] * padding)
        rows["labels"].append([p for n in chosen for p in places[n][1]] + [-100] * padding)
        tokens = [token for number in chosen for token in batch[number][1]]
        starts = [sum(len(batch[n][1]) for n in chosen[:k]) for k in range(len(chosen))]
        expected.append(
            {
                "input_ids": [token_id for token_id, *_ in tokens] + [PADDING] * padding,
                "labels": [t[0] if t[3] else -100 for t in tokens] + [-100] * padding,
                "images": None,
                "semantic_ids": [kind for _, kind, _, _ in tokens] + [2] * padding,
                "loss_mask": [int(not reason) for _, _, reason, _ in tokens] + [0] * padding,
                "hsa_dataset": ", ".join(dict.fromkeys(batch[n][0] for n in chosen)),
                "hsa_samples": [
                    {"start": start, "dataset": batch[n][0], "index": n} for start, n in zip(starts, chosen)
                ],
            }
        )
    columns = to_lists(table.look_up(rows))
    got = [dict(zip(columns, values)) for values in zip(*columns.values())]
    assert [{**row, "hsa_samples": json.loads(row["hsa_samples"])} for row in got] == expected


@given(batches.filter(bool))
def test_samples_as_rows_of_their_own(batch):
    table, places = fill(batch)
    attention_mask = [[1] * len(ids) for ids, _ in places]
    ranges = {"input_ids": [ids for ids, _ in places], "labels": [labels for _, labels in places]}
    ranges["attention_mask"] = attention_mask
    lists = {name: list(map(list, values)) for name, values in ranges.items()}
    assert to_lists(table.look_up(ranges)) == to_lists(table.look_up(lists))
    assert to_lists(table.look_up(ranges))["attention_mask"] == attention_mask


@given(st.lists(token, min_size=1))
def test_trained_tokens(tokens):
    ids = [type_token_ids([token_id], kind, reason)[0] for token_id, kind, reason, _ in tokens]
    labels = [token_id if is_label else -100 for token_id, _, _, is_label in tokens]
    assert Tokens.read(ids, labels).trained == sum(is_label and not reason for *_, reason, is_label in tokens)


def test_references_have_a_length_of_their_own():
    table = TokenTable()
    facts = {"dataset": "a"}
    first = table.add(Tokens(array("i", [5, 6, 8]), bytes([0, 1, 2]), array("i", [9]), bytes([1])), facts)
    second = table.add(Tokens(array("i", [3]), bytes([1]), array("i", [4, 4]), bytes([1, 0])), facts)
    rows = {"input_ids": [second[0], first[0]], "labels": [second[1], first[1]]}
    columns = to_lists(table.look_up(rows))
    assert columns["input_ids"] == [[3], [5, 6, 8]]
    assert columns["semantic_ids"] == [[1], [0, 1, 2]]
    assert columns["labels"] == [[4, 4], [9]]
    assert columns["loss_mask"] == [[1, 0], [1]]


@pytest.mark.parametrize("turn_ids", [None, np.zeros(2, np.int32)])
def test_tokens_without_the_turns_that_rules_need(turn_ids):
    tokens = Tokens(array("i", [5]), bytes([0]), array("i", [5]), bytes([1]), turn_ids)
    with pytest.raises(ValueError, match="dataset 'a' has tokens without turn numbers"):
        TokenTable(has_turns=True).add(tokens, {"dataset": "a"})


@pytest.mark.parametrize("images", [[None, None], [["a.png"], None]])
def test_a_table_is_what_datasets_makes_of_the_lists(images):
    batch = [("a", [(5, 0, "", True), (6, 1, "weight", True)]), ("b", [(2**31 - 1, 2, "", False)])]
    table, places = fill(batch)
    rows = {"input_ids": [ids for ids, _ in places], "labels": [labels for _, labels in places], "images": images}
    rows["packing_params"] = [{"sequence_boundaries": [0, 2]}, {"sequence_boundaries": [0, 1]}]
    columns = table.look_up(rows)
    start = Dataset.from_dict({"x": [0, 1]})
    of_table = start.map(lambda _: to_table(columns), batched=True, remove_columns="x")
    of_lists = start.map(lambda _: to_lists(columns), batched=True, remove_columns="x")
    assert of_table[:] == of_lists[:]
    names = ["images", "packing_params", "hsa_dataset", "hsa_samples"]
    other = Features({name: of_lists.features[name] for name in names})
    assert Features({name: of_table.features[name] for name in names}) == other
    kinds = {name: str(of_table.features[name].feature.dtype) for name in of_table.features if name not in names}
    assert kinds == {"input_ids": "int32", "labels": "int32", "semantic_ids": "int8", "loss_mask": "int8"}
