"""The ways in which data say whether a message is trained, and how much."""

import math

import pytest

from hsa_factory import LossWeightsConfig
from hsa_factory.labeling.formats import SampleMessage
from hsa_factory.labeling.matching import Message
from hsa_factory.labeling.trajectories.blocks import read_blocks
from hsa_factory.labeling.weights import StepLabels, read_weight


def read(labels=StepLabels(), **keys):
    return read_weight(SampleMessage(Message("assistant", "a"), "turn 3", {"content": "a", **keys}), labels)


@pytest.mark.parametrize(
    ("keys", "weight"),
    [
        ({}, None),
        ({"weight": None, "loss": None, "step_label": None}, None),
        ({"weight": 0}, 0),
        ({"weight": 1.0}, 1),
        ({"weight": 0.25}, 0.25),
        ({"loss_weight": 3}, 3),
        ({"loss": True}, 1),
        ({"loss": False}, 0),
        ({"loss": 0}, 0),
        ({"loss_mask": 1}, 1),
        ({"loss_mask": False}, 0),
        ({"trainable": True}, 1),
        ({"trainable": 0.5}, 0.5),
        ({"trainable": True, "weight": 0.5}, 0.5),  # true does not say how much
        ({"trainable": False, "weight": 0, "loss_mask": 0.0, "step_label": "mistake"}, 0),
        ({"loss_weight": 0.5, "weight": 0.5}, 0.5),
        ({"step_label": "good"}, 1),
        ({"step_label": " Recover "}, 1),
        ({"step_label": "unnecessary"}, 0),
        ({"step_label": "", "weight": 2}, 2),
    ],
)
def test_what_a_message_says(keys, weight):
    assert read(**keys) == weight


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"weight": math.nan}, "turn 3: weight nan is not allowed"),
        ({"weight": math.inf}, "weight inf is not allowed"),
        ({"loss_weight": -1}, "loss_weight -1 is not allowed"),
        ({"weight": "0.5"}, "weight '0.5' is not allowed"),
        ({"weight": 1e-9}, "weight 1e-09 is not allowed: .*a weight is 0, or a number from 1e-06 to 1000000"),
        ({"loss": 2.3}, "loss 2.3 is not allowed: .*loss is true or false"),
        ({"loss_mask": [1, 0]}, r"loss_mask \[1, 0\] is not allowed"),
        ({"weight": True}, "weight True is not allowed"),
        ({"weight": 1, "loss": False}, "turn 3: weight 1 and loss False disagree"),
        ({"weight": 0.5, "loss_weight": 2}, "weight 0.5 and loss_weight 2 disagree"),
        ({"trainable": True, "loss_mask": 0}, "loss_mask 0 and trainable True disagree"),
        ({"weight": 1, "step_label": "mistake"}, "weight 1 and step_label 'mistake' disagree"),
        ({"step_label": "mistakes"}, "step_label 'mistakes' has no weight. Did you mean 'mistake'?"),
    ],
)
def test_what_is_no_weight(keys, message):
    with pytest.raises(ValueError, match=message):
        read(**keys)


def test_labels_are_configurable():
    labels = LossWeightsConfig(step_labels={"Mistake": 0.25, "-1": 0.5}).labels
    assert read(labels, step_label="mistake") == 0.25 and read(labels, step_label=-1) == 0.5
    assert read(labels, step_label="unnecessary") == 0
    assert read(LossWeightsConfig(step_key="judged").labels, judged="mistake", step_label="anything") == 0
    assert read(LossWeightsConfig.from_dict({"step_key": "none"}).labels, step_label="anything") is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step_label": {}}, "unknown key 'step_label'. Did you mean 'step_labels'?"),
        ({"step_labels": {"mistake": -1}}, "step_labels.mistake = -1 is not allowed: a weight is 0, or"),
        ({"step_labels": {"mistake": True}}, "step_labels.mistake = True is not allowed"),
        ({"step_labels": ["mistake"]}, "step_labels = .* a mapping of names to weights"),
        ({"step_labels": {"Mistake": 0.5, "mistake ": 0.25}}, "label 'mistake' is there twice, with 0.5 and 0.25"),
        ({"step_labels": {" ": 1}}, "step_labels: ' ' is no label"),
        ({"roles": {"observations": 0.1}}, "role 'observations' is not allowed: .* Did you mean 'observation'?"),
        ({"roles": {"system": 0.1}}, "role 'system' is not allowed"),
        ({"step_key": 3}, "step_key = 3 is not allowed"),
    ],
)
def test_the_block_is_checked(values, message):
    with pytest.raises(ValueError, match=message):
        LossWeightsConfig.from_dict(values)


def test_what_becomes_one_message_has_one_weight():
    result = {"type": "tool_result", "tool_use_id": "1", "content": "seen"}
    user = {"role": "user", "content": [result, {"type": "text", "text": "go on"}], "weight": 0.5}
    reply = {"role": "assistant", "content": [{"type": "text", "text": "a"}], "loss": False}
    assert [(m["role"], m.get("weight")) for m in read_blocks([user])] == [("tool", 0.5)]
    assert [m["loss"] for m in read_blocks([reply, reply])] == [False]
    with pytest.raises(ValueError, match="become one, but say different things .*'loss': False.* and {'loss': True}"):
        read_blocks([reply, {**reply, "loss": True}])


BLOCKS = [
    {"role": "user", "content": "go"},
    {"role": "assistant", "content": [{"type": "tool_use", "name": "look", "input": {}}], "quality": "good"},
    {"role": "assistant", "content": "done", "quality": "mistake"},
]


def test_joined_replies_with_other_labels_are_refused_under_the_labels_own_key():
    with pytest.raises(ValueError, match=r"different things .*\{'quality': 'good'\} and \{'quality': 'mistake'\}"):
        read_blocks(BLOCKS, step_key="quality")
    assert len(read_blocks(BLOCKS, step_key=None)) == len(read_blocks(BLOCKS)) == 2  # a key that says nothing
    alike = [BLOCKS[0], *({**message, "quality": "good"} for message in BLOCKS[1:])]
    assert read_blocks(alike, step_key="quality")[1]["quality"] == "good"


def test_a_tools_result_has_the_label_of_the_reply_it_stands_in():
    content = [
        {"type": "server_tool_use", "name": "look", "input": {}},
        {"type": "web_search_tool_result", "content": "x"},
    ]
    reply = {"role": "assistant", "content": [*content, {"type": "text", "text": "done"}], "quality": "mistake"}
    pieces = read_blocks([BLOCKS[0], reply], step_key="quality")
    assert [piece.get("quality") for piece in pieces] == [None, "mistake", "mistake", "mistake"]
