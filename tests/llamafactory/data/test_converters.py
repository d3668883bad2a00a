"""From data files to typed messages: formats, tags, mixtures of data sets, and what is wrong in them."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llamafactory.data.converter import DATASET_CONVERTERS
from llamafactory.data.parser import DatasetAttr
from llamafactory.hparams import DataArguments
from typed_oracle import types_by_mark

from hsa_factory import HSAConfig, SemanticType
from hsa_factory.llamafactory.data.converter import typed_converter


HSA = HSAConfig()
G, L, N = 0, 1, 2
INVALID = "invalid conversation (empty, or roles in a wrong order)"
OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function",
    "system_tag": "system",
    "semantic_tag": "semantic_type",
}


def prepare(lf, tmp_path, hsa=HSA, names=None, options=None, **datasets):
    data = lf.write_data(tmp_path, **datasets)
    return lf.prepare(lf.args(data, names or ",".join(datasets), **(options or {})), hsa)


def plain_ids(lf, tmp_path, names, options=None):
    rows = lf.prepare(lf.args(tmp_path, names, **(options or {}))).rows()
    return [(row["input_ids"], row["labels"]) for row in rows]


# -- sharegpt --------------------------------------------------------------------------------------------------


def test_every_message_gets_its_own_type(lf, tmp_path):
    messages = [
        lf.say("system", "<m9>", "LANDMARK"),
        lf.say("user", "<m0>", "GLOBAL_CONDITION"),
        lf.say("assistant", "<m1>", "PROCESS_NOISE"),
        lf.say("observation", "<m2>", "KEY_EVENT"),
        lf.say("assistant", "<m3>", "NOISE"),
    ]
    prepared = prepare(lf, tmp_path, data=[messages])
    assert types_by_mark(lf, prepared) == {0: G, 1: N, 2: L, 3: N, 9: L}
    assert prepared.counts["messages"] == prepared.counts["typed_messages"] == 4
    assert plain_ids(lf, tmp_path, "data") == [(row["input_ids"], row["labels"]) for row in prepared.rows()]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("GLOBAL", G),
        ("global_condition", G),
        ("Landmark", L),
        ("key_Event", L),
        ("noise", N),
        ("PROCESS_NOISE", N),
        (" Noise ", N),
        ("1", L),
        (0, G),
        (1, L),
        (2, N),
        (2.0, N),
    ],
)
def test_names_in_any_case_and_numbers(lf, tmp_path, value, kind):
    messages = [lf.say("user", "<m0>", value), lf.say("assistant", "<m1>", value)]
    prepared = prepare(lf, tmp_path, hsa=HSAConfig(default_type=(kind + 1) % 3), data=[messages])
    assert types_by_mark(lf, prepared) == {0: kind, 1: kind}


@pytest.mark.parametrize("value", ["GLOBALE", "landmarks", "3", 3, -1, True, 1.5, "none"])
def test_unknown_types_name_data_set_sample_and_turn(lf, tmp_path, value):
    good = [lf.say("user", "<m0>"), lf.say("assistant", "<m1>")]
    bad = [lf.say("user", "<m0>"), lf.say("assistant", "<m1>"), lf.say("user", "<m2>", value), good[1]]
    lf.write_data(tmp_path, fine=[good], broken=[good, bad])
    with pytest.raises(ValueError, match="dataset 'broken', sample 1, turn 2: Unknown semantic type.*GLOBAL") as error:
        lf.prepare(lf.args(tmp_path, "fine,broken"), HSA)
    assert repr(value) in str(error.value)


def test_an_error_in_a_worker_says_the_same(lf, tmp_path):
    good = [lf.say("user", "<m0>"), lf.say("assistant", "<m1>")]
    bad = [lf.say("user", "<m0>", "nothing"), lf.say("assistant", "<m1>")]
    lf.write_data(tmp_path, data=[good, good, good, bad])
    with pytest.raises(ValueError, match="dataset 'data', sample 3, turn 0"):
        lf.prepare(lf.args(tmp_path, "data", preprocessing_num_workers=2), HSA)


def test_a_turn_is_counted_with_the_system_message(lf, tmp_path):
    bad = [lf.say("system", "<m9>", "wrong"), lf.say("user", "<m0>"), lf.say("assistant", "<m1>")]
    lf.write_data(tmp_path, system=[bad], reply=[[bad[0] | {"semantic_type": "GLOBAL"}, bad[1], bad[0] | bad[2]]])
    for name, turn in (("system", 0), ("reply", 2)):
        with pytest.raises(ValueError, match=f"dataset '{name}', sample 0, turn {turn}"):
            lf.prepare(lf.args(tmp_path, name), HSA)


def test_messages_without_a_type(lf, tmp_path):
    """A key that only some messages have comes back from JSON as None; "" is no type either."""
    messages = [
        lf.say("user", "<m0>"),
        lf.say("assistant", "<m1>", None),
        lf.say("user", "<m2>", ""),
        lf.say("assistant", "<m3>", "LANDMARK"),
    ]
    untouched = [lf.say("user", "<m4>"), lf.say("assistant", "<m5>")]
    for default in (G, N):
        prepared = prepare(lf, tmp_path, hsa=HSAConfig(default_type=default), data=[messages, untouched])
        assert types_by_mark(lf, prepared) == {0: default, 1: default, 2: default, 3: L, 4: default, 5: default}
        assert (prepared.counts["messages"], prepared.counts["typed_messages"]) == (6, 1)


def test_the_default_type_is_global(lf, tmp_path):
    messages = [lf.say("user", "<m0>"), lf.say("assistant", "<m1>")]
    assert types_by_mark(lf, prepare(lf, tmp_path, data=[messages])) == {0: G, 1: G}


def test_without_a_tag_types_are_not_read(lf, tmp_path):
    """And the data set need not hold valid ones then."""
    tags = {name: tag for name, tag in lf.TAGS.items() if name != "semantic_tag"}
    entry = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    messages = [lf.say("user", "<m0>", "whatever"), lf.say("assistant", "<m1>", "NOISE")]
    prepared = prepare(lf, tmp_path, data=(entry, [{"messages": messages}]))
    assert types_by_mark(lf, prepared) == {0: G, 1: G}
    assert prepared.counts["typed_messages"] == 0


def test_a_tag_of_another_name(lf, tmp_path):
    tags = {**lf.TAGS, "semantic_tag": "kind"}
    entry = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    messages = [{**lf.say("user", "<m0>"), "kind": "noise"}, {**lf.say("assistant", "<m1>"), "kind": "landmark"}]
    prepared = prepare(lf, tmp_path, data=(entry, [{"messages": messages}]))
    assert types_by_mark(lf, prepared) == {0: N, 1: L}


def test_a_system_column_is_global(lf, tmp_path):
    sample = {
        "messages": [lf.say("user", "<m0>", "noise"), lf.say("assistant", "<m1>", "noise")],
        "system": "<m9>",
    }
    assert types_by_mark(lf, prepare(lf, tmp_path, data=[sample])) == {0: N, 1: N, 9: G}


@pytest.mark.parametrize(
    "roles",
    [
        (),
        ("user",),
        ("assistant", "user"),
        ("user", "user"),
        ("user", "assistant", "assistant", "user"),
        ("user", "assistant", "user"),
        ("user", "assistant", "robot", "assistant"),
        ("system",),
    ],
)
def test_broken_conversations_are_dropped_and_counted(lf, tmp_path, roles):
    broken = [lf.say(role, f"<m{k}>", "noise") for k, role in enumerate(roles)]
    good = [lf.say("user", "<m20>", "landmark"), lf.say("assistant", "<m21>", "noise")]
    prepared = prepare(lf, tmp_path, data=[good, broken, good])
    assert prepared.counts["dropped_samples"] == {INVALID: [1]}
    assert prepared.counts["kept"] == len(prepared.rows()) == 2
    assert types_by_mark(lf, prepared) == {20: L, 21: N}


@pytest.mark.parametrize("sample", [{"messages": None}, {"messages": [{"role": "user", "content": None}] * 2}])
def test_a_sample_of_another_shape_is_named(lf, tmp_path, sample):
    good = {"messages": [lf.say("user", "<m0>", "noise"), lf.say("assistant", "<m1>", "noise")]}
    lf.write_data(tmp_path, data=[good, sample])
    if sample["messages"]:
        sample["messages"] = [lf.say("user", None, "noise"), lf.say("assistant", "<m1>", "noise")]
        lf.write_data(tmp_path, data=[good, sample])
    with pytest.raises(ValueError, match="dataset 'data', sample 1"):
        lf.prepare(lf.args(tmp_path, "data"), HSA)


# -- openai ----------------------------------------------------------------------------------------------------


def openai(samples, **columns):
    entry = {"formatting": "openai", "columns": {"messages": "messages", **columns}, "tags": OPENAI_TAGS}
    return entry, samples


def call(*marks):
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "look", "arguments": {"at": mark}}} for mark in marks],
    }


def test_openai_joins_the_replies_of_parallel_calls(lf, tmp_path):
    """One message for LLaMA-Factory, so one type: that of the reply that is remembered longest."""
    messages = [
        lf.say("system", "<m9>", "LANDMARK"),
        lf.say("user", "<m0>", "GLOBAL"),
        {**call("<m1>", "<m2>"), "semantic_type": "NOISE"},
        lf.say("tool", "<m3>", "NOISE"),
        lf.say("tool", "<m4>", "LANDMARK"),
        {**call("<m5>"), "semantic_type": "LANDMARK"},
        lf.say("tool", "<m6>", "NOISE"),
        lf.say("assistant", "<m7>", "NOISE"),
    ]
    prepared = prepare(lf, tmp_path, data=openai([{"messages": messages}]))
    assert types_by_mark(lf, prepared) == {0: G, 1: N, 2: N, 3: L, 4: L, 5: L, 6: N, 7: N, 9: L}
    assert plain_ids(lf, tmp_path, "data") == [(row["input_ids"], row["labels"]) for row in prepared.rows()]


@pytest.mark.parametrize("given", list(itertools.product([None, "NOISE", "LANDMARK"], repeat=2)))
def test_untyped_replies_do_not_count_when_joined(lf, tmp_path, given):
    messages = [
        lf.say("user", "<m0>", "NOISE"),
        {**call("<m1>", "<m2>"), "semantic_type": "NOISE"},
        lf.say("tool", "<m3>", given[0]),
        lf.say("tool", "<m4>", given[1]),
        lf.say("assistant", "<m7>", "NOISE"),
    ]
    expected = L if "LANDMARK" in given else N if "NOISE" in given else G
    kinds = types_by_mark(lf, prepare(lf, tmp_path, data=openai([{"messages": messages}])))
    assert (kinds[3], kinds[4]) == (expected, expected)


def test_openai_weights(lf, tmp_path):
    """A tool call can be kept out of the loss; of joined replies one is enough."""
    messages = [
        {**lf.say("user", "<m0>", "NOISE"), "weight": 1},
        {**call("<m1>", "<m2>"), "semantic_type": "NOISE", "weight": 0},
        {**lf.say("tool", "<m3>", "NOISE"), "weight": 1},
        {**lf.say("tool", "<m4>", "NOISE"), "weight": 0},
        {**lf.say("assistant", "<m7>", "NOISE"), "weight": None},
    ]
    options = {"train_on_prompt": True}
    prepared = prepare(lf, tmp_path, data=openai([{"messages": messages}]), options=options)
    marks = lf.mark_ids(prepared.tokenizer)
    (row,) = prepared.rows()
    kept = {marks[token]: keep for token, keep in zip(row["input_ids"], row["loss_mask"]) if token in marks}
    assert kept == {0: 1, 1: 0, 2: 0, 3: 0, 4: 0, 7: 1}


def test_openai_system_prompts(lf, tmp_path):
    """LLaMA-Factory adds a short prompt of its own there, which belongs to the system prompt."""
    pair = [lf.say("user", "<m0>", "NOISE"), lf.say("assistant", "<m1>", "LANDMARK")]
    samples = [
        {"messages": pair, "tools": ""},
        {"messages": [lf.say("system", "<m9>", "NOISE"), *pair], "tools": ""},
        {"messages": [lf.say("system", "<m9>"), *pair], "tools": ""},
        {"messages": pair, "tools": json.dumps([{"name": "look", "description": "<m8>", "parameters": {}}])},
    ]
    prepared = prepare(lf, tmp_path, data=openai(samples, tools="tools"), options={"template": "qwen"})
    marks = lf.mark_ids(prepared.tokenizer)
    header = len(prepared.tokenizer.encode("<|im_start|>user\n"))
    assert plain_ids(lf, tmp_path, "data", {"template": "qwen"}) == [
        (row["input_ids"], row["labels"]) for row in prepared.rows()
    ]
    for row, kind in zip(prepared.rows(), (G, N, G, G), strict=True):
        first = next(i for i, token in enumerate(row["input_ids"]) if marks.get(token) == 0)
        head = row["semantic_ids"][: first - header]
        assert set(head) == {kind} and len(head) > header
    assert "detailed thinking off" in prepared.text(prepared.rows()[0]["input_ids"])


@pytest.mark.parametrize(
    "roles", [("user",), ("assistant", "user"), ("user", "tool", "assistant"), ("user", "user", "assistant")]
)
def test_broken_openai_conversations_are_dropped(lf, tmp_path, roles):
    broken = [lf.say(role, "<m0>", "noise") for role in roles]
    good = [lf.say("user", "<m20>", "landmark"), lf.say("assistant", "<m21>", "noise")]
    prepared = prepare(lf, tmp_path, data=openai([{"messages": good}, {"messages": broken}]))
    assert prepared.counts["dropped_samples"] == {INVALID: [1]}


# -- alpaca ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("default", ["GLOBAL", "NOISE"])
def test_alpaca_gets_the_default_type(lf, tmp_path, default):
    entry = {
        "columns": {
            "prompt": "instruction",
            "query": "input",
            "response": "output",
            "history": "history",
            "system": "system",
        },
    }
    sample = {
        "instruction": "<m0>",
        "input": "<m1>",
        "output": "<m2>",
        "history": [["<m3>", "<m4>"], ["<m5>", "<m6>"]],
        "system": "<m9>",
    }
    prepared = prepare(lf, tmp_path, hsa=HSAConfig(default_type=default), data=(entry, [sample]))
    kind = int(SemanticType.parse(default))
    assert types_by_mark(lf, prepared) == {**dict.fromkeys(range(7), kind), 9: G}
    assert (prepared.counts["messages"], prepared.counts["typed_messages"]) == (6, 0)
    assert plain_ids(lf, tmp_path, "data") == [(row["input_ids"], row["labels"]) for row in prepared.rows()]


# -- mixtures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["concat", "interleave_under", "interleave_over"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (2, 4, 0, 3, 1)])
def test_all_kinds_of_data_sets_mix(lf, tmp_path, strategy, order):
    model = lf.model_dir("qwen2_5_vl")
    typed = [[lf.say("user", "<m0>", "noise"), lf.say("assistant", "<m1>", "landmark")]] * 3
    untyped_tags = {name: tag for name, tag in lf.TAGS.items() if name != "semantic_tag"}
    untyped = (
        {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": untyped_tags},
        [{"messages": [lf.say("user", "<m2>"), lf.say("assistant", "<m3>")]}] * 2,
    )
    alpaca = ({}, [{"instruction": "<m4>", "input": "", "output": "<m5>"}] * 4)
    (path,) = lf.images(tmp_path / "images", [(56, 56)])
    pictures = [
        {"messages": [lf.say("user", "<image><m6>", "noise"), lf.say("assistant", "<m7>", 1)], "images": [path]},
        {"messages": [lf.say("user", "<m6>", "noise"), lf.say("assistant", "<m7>", 1)], "images": []},
    ]
    pictures = [
        {**sample, "messages": [{**m, "semantic_type": str(m["semantic_type"])} for m in sample["messages"]]}
        for sample in pictures
    ]
    numbered = openai([{"messages": [lf.say("user", "<m8>", 2), lf.say("assistant", "<m9>", 0)]}] * 2)
    datasets = {"typed": typed, "untyped": untyped, "alpaca": alpaca, "pictures": pictures, "numbered": numbered}
    names = [list(datasets)[i] for i in order]
    options = {"template": "qwen2_vl", "mix_strategy": strategy}
    lf.write_data(tmp_path, **datasets)
    args = lf.args(tmp_path, ",".join(names), model, **options)
    prepared = lf.prepare(args, HSA)
    assert types_by_mark(lf, prepared) == {0: N, 1: L, 2: G, 3: G, 4: G, 5: G, 6: N, 7: L, 8: N, 9: G}
    assert set(prepared.report["datasets"]) == set(datasets)
    plain = lf.prepare(args)
    assert [(row["input_ids"], row["labels"], row["images"]) for row in prepared.rows()] == [
        (row["input_ids"], row["labels"], row["images"]) for row in plain.rows()
    ]


def test_all_formats_have_the_same_columns(lf):
    """Whatever is read, so that Arrow can join it; types are plain whole numbers, never missing."""
    examples = {
        "alpaca": {"instruction": "a", "input": "", "output": "b"},
        "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "t": "noise"}]},
        "openai": {"conversations": [{"from": "human", "value": "a", "t": None}, {"from": "gpt", "value": "b"}]},
    }
    seen = []
    for formatting, example in examples.items():
        attr = DatasetAttr("file", "data.json", formatting=formatting)
        attr.semantic_tag, attr.hsa_name = "t", "name"
        converter = typed_converter(DATASET_CONVERTERS[formatting], SemanticType.LANDMARK)
        output = converter(attr, DataArguments())({**example, "_hsa_index": 7})
        assert output["_hsa_index"] == 7 and output["_hsa_dataset"] == "name"
        messages = output["_prompt"] + output["_response"]
        assert [message["content"] for message in messages] == ["a", "b"]
        assert [message["semantic_type"] for message in messages] == [L, N if formatting == "sharegpt" else L]
        seen.append((list(output), [{key: type(value) for key, value in message.items()} for message in messages]))
    assert all(first == second for first, second in itertools.pairwise(seen))


# -- media files -----------------------------------------------------------------------------------------------


def test_a_missing_picture_is_named_with_data_set_and_sample(lf, tmp_path):
    (path,) = lf.images(tmp_path / "images", [(56, 56)])
    sample = lambda image: {  # noqa: E731
        "messages": [lf.say("user", "<image><m0>", "noise"), lf.say("assistant", "<m1>", "noise")],
        "images": [image],
    }
    lf.write_data(tmp_path, photos=[sample(path), sample("images/0.png"), sample("images/lost.png")])
    args = lf.args(tmp_path, "photos", lf.model_dir("qwen2_5_vl"), template="qwen2_vl")
    with pytest.raises(
        FileNotFoundError, match="dataset 'photos', sample 2: images? .*lost.png' does not exist.*media"
    ):
        lf.prepare(args, HSA)
    assert len(lf.prepare({**args, "max_samples": 2}, HSA).rows()) == 2  # found as they are, and in the data's folder


def test_more_pictures_than_placeholders_are_named(lf, tmp_path):
    paths = lf.images(tmp_path / "images", [(56, 56)] * 2)
    sample = {"messages": [lf.say("user", "<image>", 0), lf.say("assistant", "<m1>", 0)], "images": paths}
    lf.write_data(tmp_path, photos=[sample])
    args = lf.args(tmp_path, "photos", lf.model_dir("qwen2_5_vl"), template="qwen2_vl")
    with pytest.raises(
        ValueError, match="dataset 'photos', sample 0: its messages hold 1 <image>, but it has 2 images"
    ):
        lf.prepare(args, HSA)


# -- alignment -------------------------------------------------------------------------------------------------

KINDS = st.sampled_from([None, "", "GLOBAL", "landmark", "NOISE", 0, 1, 2])


@given(
    formatting=st.sampled_from(["sharegpt", "openai"]),
    system=st.none() | KINDS.map(lambda kind: (kind,)),
    turns=st.lists(
        st.tuples(st.sampled_from(["user", "tool"]), st.integers(1, 3), st.lists(KINDS, min_size=4, max_size=4)),
        max_size=6,
    ),
    cut=st.integers(0, 1),
)
def test_types_stay_with_their_messages(formatting, system, turns, cut):
    """Contents tell the message; replies to parallel calls are several messages in openai's format."""
    attr = DatasetAttr("file", "data.json", formatting=formatting)
    attr.join({"formatting": formatting, "columns": {"messages": "messages"}, "tags": OPENAI_TAGS})
    attr.semantic_tag, attr.hsa_name = "semantic_type", "data"
    messages, expected = [], []
    if system is not None:
        messages.append({"role": "system", "content": "s", "semantic_type": system[0]})
    number = itertools.count()
    for role, replies, kinds in turns:
        replies = replies if role == "tool" and formatting == "openai" else 1
        texts = [f"c{next(number)}" for _ in range(replies)]
        messages += [
            {"role": role, "content": text, "semantic_type": kind} for text, kind in zip(texts, kinds, strict=False)
        ]
        given = [SemanticType.parse(kind) for kind in kinds[:replies] if kind not in (None, "")]
        expected.append(("\n</tool_response>\n<tool_response>\n".join(texts), min(given, default=L)))
        answer = f"c{next(number)}"
        messages.append({"role": "assistant", "content": answer, "semantic_type": kinds[-1]})
        expected.append((answer, L if kinds[-1] in (None, "") else SemanticType.parse(kinds[-1])))

    broken = not turns or bool(cut)
    if cut and messages:
        messages = messages[:-1]
    converter = typed_converter(DATASET_CONVERTERS[formatting], SemanticType.LANDMARK)(attr, DataArguments())
    output = converter({"messages": messages, "_hsa_index": 0})
    result = [(m["content"], m["semantic_type"]) for m in output["_prompt"] + output["_response"]]
    if not broken:
        assert result == expected
    elif formatting == "sharegpt" or not turns:
        assert result == []
    assert all(type(kind) is int for _, kind in result)
    assert output["_hsa_system_type"] == (
        G if not messages or system is None or system[0] in (None, "") else SemanticType.parse(system[0])
    )
