"""Samples with a label (`kto_tag`) and pairs (`ranking`): each message keeps its type, whatever LLaMA-Factory adds."""

import pytest
from llamafactory.data.converter import DATASET_CONVERTERS
from llamafactory.data.parser import DatasetAttr
from llamafactory.hparams import DataArguments

from hsa_factory import SemanticType
from hsa_factory.labeling.rule_set import RuleSet
from hsa_factory.llamafactory.data.converter import typed_converter


G, L, N = 0, 1, 2
USER = {"role": "user", "content": "u", "semantic_type": "NOISE"}
REPLY = {"role": "assistant", "content": "r", "semantic_type": "LANDMARK"}
TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
ALPACA_TYPES = [{"role": "user", "semantic_type": "NOISE"}, {"role": "assistant", "semantic_type": "LANDMARK"}]
ALPACA = {"instruction": "u", "input": "", "output": "r", "semantic_types": ALPACA_TYPES}
MESSAGES = {"messages": [USER, REPLY]}
ADDED = ("", G, -1)


def convert(formatting, sample, columns, ranking=False, rules=None):
    """Convert a sample; return what is known of its messages, and the converted sample."""
    attributes = DatasetAttr("file", "data", formatting=formatting, ranking=ranking)
    attributes.semantic_tag, attributes.hsa_name = "semantic_type", "data"
    values = columns if formatting == "alpaca" else {**columns, **TAGS, "messages": "messages"}
    for name, value in values.items():
        setattr(attributes, name, value)
    converter = typed_converter(DATASET_CONVERTERS[formatting], SemanticType.GLOBAL, rules)
    output = converter(attributes, DataArguments())({**sample, "_hsa_index": 5})
    known = [(m["content"], m["semantic_type"], m["turn"]) for m in output["_prompt"] + output["_response"]]
    return known, output


@pytest.mark.parametrize("formatting", ["sharegpt", "openai", "alpaca"])
@pytest.mark.parametrize("label", [True, False])
def test_the_empty_reply_that_is_added_takes_no_type_from_the_others(formatting, label):
    sample = {**(ALPACA if formatting == "alpaca" else MESSAGES), "label": label}
    known, output = convert(formatting, sample, {"kto_tag": "label"})
    reply = [("r", L, 1), ADDED] if label else [ADDED, ("r", L, 1)]
    assert known == [("u", N, 0), *reply]
    assert output["_hsa_typed_messages"] == 2


def test_an_empty_reply_of_the_data_keeps_its_type_beside_the_added_one():
    sample = {"messages": [USER, {**REPLY, "content": ""}], "label": False}
    assert convert("sharegpt", sample, {"kto_tag": "label"})[0] == [("u", N, 0), ADDED, ("", L, 1)]


def test_rules_and_weights_reach_a_labelled_reply():
    rules = RuleSet.parse([{"type": "NOISE", "role": "assistant"}])
    reply = {"role": "assistant", "content": "r", "loss": False}
    sample = {"messages": [{"role": "user", "content": "u"}, reply], "label": False}
    known, output = convert("sharegpt", sample, {"kto_tag": "label"}, rules=rules)
    assert known == [("u", G, 0), ADDED, ("r", N, 1)]
    assert [message["weight"] for message in output["_response"]] == [1, 0]


@pytest.mark.parametrize("label", [None, "true", 1])
def test_what_is_no_label_adds_nothing(label):
    assert convert("sharegpt", {**MESSAGES, "label": label}, {"kto_tag": "label"})[0] == [("u", N, 0), ("r", L, 1)]


@pytest.mark.parametrize("formatting", ["sharegpt", "openai", "alpaca"])
def test_both_replies_of_a_pair_keep_their_types(formatting):
    columns = {"chosen": "better", "rejected": "worse"}
    other = {"role": "assistant", "content": "w", "semantic_type": "NOISE"}
    if formatting == "alpaca":
        types = [*ALPACA_TYPES, {"role": "assistant", "semantic_type": "NOISE"}]
        sample = {"instruction": "u", "input": "", "better": "r", "worse": "w", "semantic_types": types}
    else:
        sample = {"messages": [USER], "better": REPLY, "worse": other}
    known, _ = convert(formatting, sample, columns, ranking=True)
    assert [message[:2] for message in known] == [("u", N), ("r", L), ("w", N)]


@pytest.mark.parametrize("columns", [{"better": "r", "worse": None}, {"better": None, "worse": None}])
def test_half_a_pair_is_left_to_be_dropped(columns):
    sample = {"instruction": "u", "input": "", "output": "r", **columns}
    known, output = convert("alpaca", sample, {"chosen": "better", "rejected": "worse"}, ranking=True)
    assert len(output["_response"]) < 2 and all(kind == G for _, kind, _ in known)


def test_a_set_that_is_both_is_refused():
    sample = {"instruction": "u", "input": "", "output": "r", "better": "b", "worse": "w", "label": True}
    columns = {"chosen": "better", "rejected": "worse", "kto_tag": "label"}
    with pytest.raises(ValueError, match="dataset 'data', sample 5: .* 3 messages of its 4.*`kto_tag`, or `ranking`"):
        convert("alpaca", sample, columns, ranking=True)
