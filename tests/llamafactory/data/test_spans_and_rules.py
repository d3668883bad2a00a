"""Spans and rules through LLaMA-Factory's pipeline: ids never change, every token has the type of its characters."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typed_oracle import types_by_mark

from hsa_factory import FeedbackConfig, HSAConfig


G, L, N = 0, 1, 2
NAMES = ("GLOBAL", "LANDMARK", "NOISE")
RULES = [
    {"role": "system", "type": "GLOBAL"},
    {"role": "user", "turn": "first", "type": "GLOBAL"},
    {"role": "assistant", "tag": "act", "verbs": ["take", "open"], "type": "LANDMARK"},
    {"role": ["user", "assistant", "observation"], "type": "NOISE"},
    {"name": "calls", "role": "function", "type": "LANDMARK"},
]
TOOLS = json.dumps([{"name": "go", "description": "Go.", "parameters": {"type": "object", "properties": {}}}])


def same_ids(prepared, plain):
    """Whether ids and labels are those of plain LLaMA-Factory."""
    assert [(row["input_ids"], row["labels"]) for row in prepared.rows()] == [
        (row["input_ids"], row["labels"]) for row in plain.rows()
    ]


def parts(*pairs):
    return [{"text": text, "semantic_type": kind} for text, kind in pairs]


# -- parts -----------------------------------------------------------------------------------------------------


def test_parts_have_types_of_their_own(lf, tmp_path):
    messages = [
        lf.say("system", parts(("<m0>", "LANDMARK"), ("<m1>", None)), None),
        lf.say("user", parts(("<m2>", "GLOBAL"), ("", "NOISE"), ("<m3>", "NOISE")), "LANDMARK"),
        lf.say("assistant", parts(("<m4>", "NOISE"), ("<m5>", "LANDMARK"), ("<m6>", None)), "NOISE"),
    ]
    joined = [{**m, "content": "".join(part["text"] for part in m["content"])} for m in messages]
    lf.write_data(tmp_path, parted=[messages], joined=[joined])
    prepared = lf.prepare(lf.args(tmp_path, "parted"), HSAConfig())
    assert types_by_mark(lf, prepared) == {0: L, 1: G, 2: G, 3: N, 4: N, 5: L, 6: N}
    same_ids(prepared, lf.prepare(lf.args(tmp_path, "joined")))
    assert prepared.counts["typed_messages"] == 2


def test_the_frame_has_the_type_of_the_message(lf, tmp_path):
    """Its text may stand in the frame, too: what is meant is the text itself."""
    messages = [
        lf.say("user", parts(("us", "LANDMARK"), ("er", "GLOBAL")), "NOISE"),
        lf.say("assistant", "<m1>", "NOISE"),
    ]
    messages[1]["content"] = parts(("<m1>", "NOISE"))
    lf.write_data(tmp_path, data=[messages])
    prepared = lf.prepare(lf.args(tmp_path, "data"), HSAConfig())
    (row,) = prepared.rows()
    text = "<|im_start|>user\nuser<|im_end|>\n<|im_start|>assistant\n"
    offsets = prepared.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    types = [N] * 17 + [L] * 2 + [G] * 2 + [N] * 40
    assert prepared.text(row["input_ids"]).startswith(text)
    assert row["semantic_ids"][: len(offsets)] == [min(types[start:end]) for start, end in offsets]


def test_pictures_as_parts(lf, tmp_path):
    """Files that parts name and files of the column, in the order of their placeholders."""
    paths = lf.images(tmp_path / "images", [(56, 56), (84, 56), (56, 84), (112, 56)])
    content = [
        {"type": "text", "text": "<image><m0>", "semantic_type": "NOISE"},
        {"type": "image", "image": paths[1], "semantic_type": "LANDMARK"},
        {"type": "text", "text": "<m1>", "semantic_type": "GLOBAL"},
        {"type": "image", "semantic_type": "NOISE"},
    ]
    second = [{"type": "image", "image": paths[3], "semantic_type": "GLOBAL"}, {"type": "text", "text": "<m3>"}]
    reply = [{"type": "text", "text": "<m2>", "semantic_type": "LANDMARK"}]
    messages = [
        lf.say("user", content),
        lf.say("assistant", reply),
        lf.say("user", second),
        lf.say("assistant", reply),
    ]
    joined = [
        lf.say("user", "<image><m0><image><m1><image>"),
        lf.say("assistant", "<m2>"),
        lf.say("user", "<image><m3>"),
        lf.say("assistant", "<m2>"),
    ]
    lf.write_data(
        tmp_path,
        parted=[{"messages": messages, "images": [paths[0], paths[2]]}],
        joined=[{"messages": joined, "images": paths}],
    )
    options = (lf.model_dir("qwen2_5_vl"),)
    prepared = lf.prepare(lf.args(tmp_path, "parted", *options, template="qwen2_vl"), HSAConfig())
    plain = lf.prepare(lf.args(tmp_path, "joined", *options, template="qwen2_vl"))
    same_ids(prepared, plain)
    assert prepared.rows()[0]["images"] == plain.rows()[0]["images"] == paths
    assert types_by_mark(lf, prepared) == {0: N, 1: G, 2: L, 3: G}
    pad = prepared.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    (row,) = prepared.rows()
    runs = [kind for token, kind in zip(row["input_ids"], row["semantic_ids"]) if token == pad]
    changes = [kind for kind, before in zip(runs, [None, *runs]) if kind != before]
    assert changes == [N, L, N, G]


def test_parts_that_are_wrong_are_named(lf, tmp_path):
    good = lf.say("assistant", [{"text": "<m1>", "semantic_type": "NOISE"}])
    for number, (part, message) in enumerate(
        [
            ({"text": "a", "semantic_type": "NOSE"}, "turn 0: part 1: Unknown semantic type 'NOSE'"),
            ({"text": None, "semantic_type": "NOISE"}, "turn 0: part 1: expected a `text`, or a `type` of image"),
        ]
    ):
        bad = lf.say("user", [{"text": "<m0>", "semantic_type": "NOISE"}, part])
        name = f"bad{number}"
        lf.write_data(tmp_path, **{name: [[bad, good]]})
        with pytest.raises(ValueError, match=f"dataset '{name}', sample 0, {message}"):
            lf.prepare(lf.args(tmp_path, name), HSAConfig())


# -- spans by position -----------------------------------------------------------------------------------------


def test_spans_by_position(lf, tmp_path):
    span = {"start": 4, "end": 8, "semantic_type": "LANDMARK"}
    messages = [
        {**lf.say("user", "<m0>", "GLOBAL"), "semantic_spans": None},
        {**lf.say("assistant", "<m1><m2><m3>", "NOISE"), "semantic_spans": [span]},
    ]
    lf.write_data(tmp_path, data=[messages])
    prepared = lf.prepare(lf.args(tmp_path, "data"), HSAConfig())
    assert types_by_mark(lf, prepared) == {0: G, 1: N, 2: L, 3: N}
    same_ids(prepared, lf.prepare(lf.args(tmp_path, "data")))


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ({"start": 4, "end": 9, "semantic_type": 1}, "start = 4, end = 9: expected 0 ≤ start ≤ end ≤ 8"),
        ({"start": -1, "end": 2, "semantic_type": 1}, "start = -1"),
        ({"start": 0, "end": 2, "semantic_type": 7}, "semantic_spans 0: Unknown semantic type 7"),
    ],
)
def test_spans_that_are_wrong_are_named(lf, tmp_path, span, message):
    messages = [
        lf.say("user", "<m0>", "NOISE"),
        {**lf.say("assistant", "<m1><m2>", "NOISE"), "semantic_spans": [span]},
    ]
    lf.write_data(tmp_path, data=[messages])
    with pytest.raises(ValueError, match=f"dataset 'data', sample 0, turn 1: .*{message}"):
        lf.prepare(lf.args(tmp_path, "data"), HSAConfig())


# -- rules -----------------------------------------------------------------------------------------------------


def trajectory(lf):
    return [
        lf.say("system", "<m0>"),
        lf.say("user", "<m1>"),
        lf.say("assistant", "<m2><act>take <m3></act><m4>"),
        lf.say("user", "<m5>"),
        lf.say("assistant", "<act>open <m6></act>"),
        lf.say("user", "<m7>"),
        lf.say("assistant", "<act>look <m8></act>"),
        lf.say("observation", "<m9>"),
        lf.say("function", json.dumps({"name": "go", "arguments": {"to": "<m10>"}})),
    ]


TYPES = {0: G, 1: G, 2: N, 3: L, 4: N, 5: N, 6: L, 7: N, 8: N, 9: N, 10: L}


@pytest.mark.parametrize("labels", ["list", "file"])
def test_rules_type_what_has_no_type(lf, tmp_path, labels):
    lf.write_data(tmp_path, data=[trajectory(lf)])
    path = tmp_path / "rules.yaml"
    path.write_text(json.dumps(RULES), "utf-8")
    hsa = HSAConfig(rules=RULES if labels == "list" else str(path))
    prepared = lf.prepare(lf.args(tmp_path, "data"), hsa)
    assert types_by_mark(lf, prepared) == TYPES
    same_ids(prepared, lf.prepare(lf.args(tmp_path, "data")))
    assert (prepared.counts["typed_messages"], prepared.counts["ruled_messages"]) == (0, 8)
    assert list(prepared.counts["rules"].values()) == [1, 1, 2, 5, 1]


def test_types_in_the_data_win_over_rules(lf, tmp_path):
    messages = trajectory(lf)
    messages[1]["semantic_type"], messages[2]["semantic_type"], messages[3]["semantic_type"] = "NOISE", "", "LANDMARK"
    lf.write_data(tmp_path, data=[messages])
    prepared = lf.prepare(lf.args(tmp_path, "data"), HSAConfig(rules=RULES))
    assert types_by_mark(lf, prepared) == {**TYPES, 1: N, 5: L}
    assert (prepared.counts["typed_messages"], prepared.counts["ruled_messages"]) == (2, 6)


def test_rules_of_all_formats_mix(lf, tmp_path):
    """Alpaca, sharegpt with a system column, and openai's tool calls; streams and workers too."""
    alpaca = ({}, [{"instruction": "<m20>", "input": "<m21>", "output": "<m22><act>take <m23></act>"}] * 3)
    openai_tags = {**lf.TAGS, "observation_tag": "tool"}
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "go", "arguments": {"a": "<m31>"}}}],
    }
    openai = [
        lf.say("user", "<m30>"),
        call,
        lf.say("tool", "<m32>"),
        lf.say("tool", "<m33>"),
        lf.say("assistant", "<m34><act>open <m35></act>"),
    ]
    entry = {"formatting": "openai", "columns": {"messages": "messages"}, "tags": openai_tags}
    column = [{"messages": trajectory(lf)[1:5], "system": "<m0>"}] * 2
    lf.write_data(tmp_path, data=column, alpaca=alpaca, openai=(entry, [{"messages": openai}] * 2))
    expected = {mark: kind for mark, kind in TYPES.items() if mark <= 6}
    expected |= {20: G, 21: G, 22: N, 23: L, 30: G, 31: L, 32: N, 33: N, 34: N, 35: L}
    for options in ({}, {"preprocessing_num_workers": 2}, {"streaming": True, "dataloader_num_workers": 1}):
        args = lf.args(tmp_path, "data,alpaca,openai", **options)
        prepared = lf.prepare(args, HSAConfig(rules=RULES))
        assert types_by_mark(lf, prepared) == expected
        same_ids(prepared, lf.prepare(args))


def test_changed_rules_are_applied_not_the_cache(lf, tmp_path):
    lf.write_data(tmp_path, data=[trajectory(lf)])
    args = lf.args(tmp_path, "data")
    for verb, kind in (("take", L), ("put", N), ("take", L)):
        rules = [*RULES[:2], {**RULES[2], "verbs": [verb]}, *RULES[3:]]
        assert types_by_mark(lf, lf.prepare(args, HSAConfig(rules=rules)))[3] == kind


def test_tokenized_data_of_other_rules_are_refused(lf, tmp_path):
    lf.write_data(tmp_path, data=[trajectory(lf)])
    args = lf.args(tmp_path, "data", tokenized_path=str(tmp_path / "tokenized"))
    lf.prepare(args, HSAConfig(rules=RULES))
    assert types_by_mark(lf, lf.prepare(args, HSAConfig(rules=RULES)))[3] == L
    with pytest.raises(ValueError, match="was made with hsa.rules"):
        lf.prepare(args, HSAConfig(rules="react"))


def test_rules_that_never_match_are_a_warning(lf, tmp_path, capsys):
    lf.write_data(tmp_path, data=[trajectory(lf)], other=[trajectory(lf)])
    rules = [{"name": "never", "tag": "nowhere", "type": 0}, *RULES]
    prepared = lf.prepare(lf.args(tmp_path, "data,other"), HSAConfig(rules=rules))
    assert "these rules of hsa.rules never matched: 'never'" in capsys.readouterr().out
    assert prepared.counts_of("other")["rules"]["never"] == 0


def test_a_pattern_that_takes_for_ever_names_rule_and_message(lf, tmp_path, monkeypatch):
    monkeypatch.setattr("hsa_factory.labeling.matching.PATTERN_TIMEOUT", 0.1)
    messages = [lf.say("user", "<m0>"), lf.say("assistant", "a" * 60 + "!")]
    lf.write_data(tmp_path, data=[messages])
    rules = [{"name": "slow", "pattern": "(a|aa)+$", "type": 0}]
    with pytest.raises(
        ValueError, match="dataset 'data', sample 0, turn 1: rule 'slow': pattern .* took longer than 0.1 s"
    ):
        lf.prepare(lf.args(tmp_path, "data"), HSAConfig(rules=rules))


# -- templates, truncation, packing ----------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["qwen3", "llama2", "deepseekr1", "glm4", "mistral"])
@pytest.mark.parametrize("mask_history", [False, True])
def test_thoughts_that_a_template_removes(lf, tmp_path, template, mask_history):
    """Reasoning templates take earlier thoughts out; what remains keeps its types."""
    reply = "<think><m1><act>take <m2></act></think>\n\n<m3><act>take <m4></act><m5>"
    messages = [lf.say("user", "<m0>"), lf.say("assistant", reply)] * 2 + [lf.say("user", "<m6>")]
    messages.append(lf.say("assistant", reply.replace("<m1>", "<m7>")))
    lf.write_data(tmp_path, data=[messages])
    options = {"template": template, "mask_history": mask_history}
    prepared = lf.prepare(lf.args(tmp_path, "data", **options), HSAConfig(rules=RULES[2:]))
    kinds = types_by_mark(lf, prepared)
    assert {mark: kinds[mark] for mark in kinds} == {
        m: k for m, k in zip(range(8), (N, N, L, N, L, N, N, N)) if m in kinds
    }
    assert {0, 2, 3, 4, 5, 6, 7} <= set(kinds)
    same_ids(prepared, lf.prepare(lf.args(tmp_path, "data", **options)))


@pytest.mark.parametrize("template", ["qwen3", "llama3", "glm4", "mistral", "default"])
def test_a_call_that_a_template_renders_otherwise_keeps_the_types_of_its_words(lf, tmp_path, template):
    call = '{"name":"go","arguments":{"to":"<m1>","how":["<m2>"],"why":"<m3>"}}'
    start = call.index('"how"')
    span = {"start": start, "end": call.index(',"why"'), "semantic_type": "LANDMARK"}
    messages = [
        lf.say("user", "<m0>", "GLOBAL"),
        {**lf.say("function", call, "NOISE"), "semantic_spans": [span]},
        {**lf.say("observation", "<m4>", "NOISE"), "semantic_spans": []},
        {**lf.say("assistant", "<m5>", "NOISE"), "semantic_spans": []},
    ]
    messages[0]["semantic_spans"] = []
    lf.write_data(tmp_path, data=[{"messages": messages, "tools": TOOLS}])
    args = lf.args(tmp_path, "data", template=template)
    prepared = lf.prepare(args, HSAConfig())
    assert types_by_mark(lf, prepared) == {0: G, 1: N, 2: L, 3: N, 4: N, 5: N}
    assert prepared.counts["guessed_messages"] == 0
    same_ids(prepared, lf.prepare(args))


@pytest.mark.parametrize("kind", [str, lambda text: text])
@pytest.mark.parametrize(
    ("changes", "guessed"), [({"  <m3>": " <m3>", "take": "get"}, 0), ({"<m1>  <act>take <m2></act>": "冰箱"}, 1)]
)
def test_a_processor_that_changes_the_text(lf, tmp_path, monkeypatch, capsys, kind, changes, guessed):
    """What it leaves keeps its types; what it replaces across types is counted, and shown."""
    from llamafactory.data.mm_plugin import BasePlugin

    def process_messages(self, messages, *args):
        for old, new in changes.items():
            messages = [{**message, "content": kind(message["content"]).replace(old, new)} for message in messages]
        return messages

    lf.write_data(tmp_path, data=[[lf.say("user", "<m0>"), lf.say("assistant", "<m1>  <act>take <m2></act>  <m3>")]])
    args = lf.args(tmp_path, "data")
    with monkeypatch.context() as patched:
        patched.setattr(BasePlugin, "process_messages", process_messages)
        prepared = lf.prepare(args, HSAConfig(rules=RULES[1:]))
        same_ids(prepared, lf.prepare(args))
    assert types_by_mark(lf, prepared) == ({0: G, 3: N} if guessed else {0: G, 1: N, 2: L, 3: N})
    assert prepared.counts["guessed_messages"] == guessed
    assert ("1 message with parts of several types was changed" in capsys.readouterr().out) == bool(guessed)


def test_a_tokenizer_without_offsets_is_counted(lf, tmp_path, monkeypatch):
    from hsa_factory.llamafactory.data.text_encoder import TextEncoder

    monkeypatch.setattr(TextEncoder, "encode_with_offsets", lambda self, text: (self.encode(text), None))
    lf.write_data(tmp_path, data=[[lf.say("user", "<m0>"), lf.say("assistant", "<m1><act>take <m2></act>")]])
    prepared = lf.prepare(lf.args(tmp_path, "data"), HSAConfig(rules=RULES[1:]))
    assert types_by_mark(lf, prepared) == {0: G, 1: L, 2: L}
    assert prepared.counts["guessed_messages"] == 1


@pytest.mark.parametrize(
    "options",
    [{"cutoff_len": 60}, {"packing": True, "neat_packing": True, "cutoff_len": 256}, {"train_on_prompt": True}],
)
def test_spans_under_truncation_packing_and_feedback(lf, tmp_path, options):
    model = lf.model_dir(extra=(lf.MARKER,))
    messages = trajectory(lf)
    messages[5]["content"] += lf.MARKER
    lf.write_data(tmp_path, data=[messages] * 3)
    args = lf.args(tmp_path, "data", model, **options)
    feedback = FeedbackConfig(missing="train") if "cutoff_len" not in options or options["cutoff_len"] > 60 else None
    prepared = lf.prepare(args, HSAConfig(rules=RULES), feedback)
    kinds = types_by_mark(lf, prepared)
    assert kinds == {mark: TYPES[mark] for mark in kinds} and len(kinds) >= 4
    assert [row["input_ids"] for row in prepared.rows()] == [row["input_ids"] for row in lf.prepare(args).rows()]


PIECES = st.sampled_from(
    ["The", " robot", "fr", "idge", "<think>", "user", "\n", " ", "冰箱", "é", "👩‍👧", "<m1>", "x"]
)


@given(st.lists(st.lists(st.tuples(PIECES, st.sampled_from(NAMES)), min_size=1, max_size=8), min_size=2, max_size=4))
def test_each_token_has_the_type_of_its_characters(lf, typing, turns):
    """Property: rendered by the template with plain tokens' offsets, whatever the spans."""
    typing(turns[: len(turns) // 2 * 2])


@pytest.fixture(scope="module")
def typing(lf):
    """A function that encodes turns of typed pieces with the typed template and checks each token."""
    from llamafactory.data.template import TEMPLATES

    from hsa_factory import SemanticType
    from hsa_factory.llamafactory.data.template import TEXT_KEY, typed_template
    from hsa_factory.typed.ids import semantic_ids_of
    from hsa_factory.typed.text import TypedText

    tokenizer = lf.new_tokenizer()
    template = TEMPLATES["qwen"]
    typed = typed_template(template, SemanticType.NOISE)

    def check(turns):
        messages, marked = [], []
        for number, pieces in enumerate(turns):
            role = ("user", "assistant")[number % 2]
            text = TypedText("", L)
            for piece, kind in pieces:
                text += TypedText(piece, int(SemanticType.parse(kind)))
            text += TypedText("", L)
            messages.append({"role": role, "content": str(text), "semantic_type": L})
            marked.append({**messages[-1], TEXT_KEY: text})
        plain = template.encode_multiturn(tokenizer, messages)
        pairs = typed.encode_multiturn(tokenizer, marked)
        assert [(list(map(int, prompt)), list(map(int, reply))) for prompt, reply in pairs] == plain
        frames = {
            "user": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
            "assistant": ("", "<|im_end|>\n"),
        }
        ids = [token for pair in pairs for side in pair for token in side]
        expected = []
        system = template.format_system.apply(content=template.default_system)[0]
        expected += [G] * len(tokenizer.encode(system, add_special_tokens=False))
        for message in marked:
            before, after = frames[message["role"]]
            types = [L] * len(before) + list(message[TEXT_KEY].types()) + [L] * len(after)
            whole = before + message["content"] + after
            offsets = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            expected += [min(types[start : max(end, start + 1)]) for start, end in offsets]
        assert semantic_ids_of(ids).tolist() == expected

    return check


# -- texts and parts in one file -------------------------------------------------------------------------------


def test_texts_and_parts_in_one_file(lf, tmp_path):
    """Arrow cannot hold both in one column; types as names and as numbers neither."""
    messages = [
        lf.say("system", "<m0>"),
        lf.say("user", ["<m1>", {"text": "<m2>", "semantic_type": "NOISE"}], 1),
        lf.say("assistant", "<m3>", "LANDMARK"),
        lf.say("user", "<m4>", None),
        lf.say("assistant", [{"type": "text", "text": ""}, {"type": "text", "text": "<m5>", "semantic_type": 2}], 0),
    ]
    joined = [{**m, "content": "<m1><m2>"} if m["content"][0] == "<m1>" else m for m in messages]
    joined = [{**m, "content": "<m5>"} if isinstance(m["content"], list) else m for m in joined]
    joined = [{key: m[key] for key in ("role", "content")} for m in joined]
    plain = [[lf.say("user", "<m6>", "NOISE"), lf.say("assistant", "<m7>", "NOISE")]]
    lf.write_data(tmp_path, mixed=[messages, *plain] * 2, joined=[joined, *plain] * 2)
    for more in ({}, {"streaming": True, "dataloader_num_workers": 1}, {"preprocessing_num_workers": 2}):
        prepared = lf.prepare(lf.args(tmp_path, "mixed", **more), HSAConfig())
        assert types_by_mark(lf, prepared) == {0: G, 1: L, 2: N, 3: L, 4: G, 5: N, 6: N, 7: N}
        same_ids(prepared, lf.prepare(lf.args(tmp_path, "joined", **more)))


def test_texts_and_parts_in_json_lines_with_pictures(lf, tmp_path):
    paths = lf.images(tmp_path / "images", [(56, 56), (84, 56)])
    image_url = {"type": "image_url", "image_url": {"url": paths[0]}, "semantic_type": "LANDMARK"}
    samples = [
        [
            lf.say("user", [image_url, {"type": "image", "image": paths[1]}, "<m0>"], "NOISE"),
            lf.say("assistant", "<m1>"),
        ],
        [lf.say("user", "<m2>", "NOISE"), lf.say("assistant", "<m3>")],
    ]
    entry = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": lf.TAGS}
    lf.write_data(tmp_path, data=(entry, []))
    (tmp_path / "data.json").write_text("\n".join(json.dumps({"messages": sample}) for sample in samples), "utf-8")
    args = lf.args(tmp_path, "data", lf.model_dir("qwen2_5_vl"), template="qwen2_vl")
    prepared = lf.prepare(args, HSAConfig())
    assert types_by_mark(lf, prepared) == {0: N, 1: G, 2: N, 3: G}
    assert prepared.rows()[0]["images"] == paths
    pad = prepared.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    row = prepared.rows()[0]
    assert {kind for token, kind in zip(row["input_ids"], row["semantic_ids"]) if token == pad} == {L, N}


def test_a_changed_file_is_read_again(lf, tmp_path):
    for kind, number in (("NOISE", N), ("LANDMARK", L)):
        messages = [lf.say("user", "<m0>"), lf.say("assistant", [{"text": "<m1>", "semantic_type": kind}])]
        lf.write_data(tmp_path, data=[messages])
        assert types_by_mark(lf, lf.prepare(lf.args(tmp_path, "data"), HSAConfig()))[1] == number


# -- labelled files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_a_labelled_file_is_what_the_rules_make_of_the_raw_one(lf, tmp_path, suffix):
    """All formats: labelled by `hsa-factory label` and trained, or raw with `hsa.rules`; plain LLaMA-Factory reads both."""
    from hsa_factory import cli

    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "go", "arguments": {"a": "<m31>"}}}],
    }
    openai = [lf.say("user", "<m30>"), call, lf.say("tool", "<m32>"), lf.say("tool", "<act>take <m33></act>")]
    openai.append(lf.say("assistant", "<m34><act>open <m35></act>"))
    alpaca = {
        "instruction": "<m20>",
        "input": "<m21>",
        "output": "<m22><act>take <m23></act>",
        "history": [["<m24>", "<m25>"]],
    }
    column = {"messages": trajectory(lf)[1:5], "system": "<m0>"}
    openai_entry = {"formatting": "openai", "columns": {"messages": "messages"}}
    openai_entry["tags"] = {**lf.TAGS, "observation_tag": "tool"}
    alpaca_entry = {"columns": {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}}
    lf.write_data(
        tmp_path,
        talk=[trajectory(lf)] * 3,
        column=[column] * 2,
        openai=(openai_entry, [{"messages": openai}] * 2),
        alpaca=(alpaca_entry, [alpaca] * 2),
    )
    rules = tmp_path / "rules.yaml"
    rules.write_text(json.dumps([{"role": "system", "pattern": "m0", "type": "NOISE"}, *RULES]), "utf-8")
    names = ["talk", "column", "openai", "alpaca"]
    for name in names:
        arguments = [tmp_path / "dataset_info.json", "--dataset", name, "--rules", rules, "--register"]
        arguments += ["--out", tmp_path / f"{name}_typed{suffix}", "--workers", 1]
        assert cli.main(["label", *map(str, arguments)]) == 0
    raw = lf.prepare(lf.args(tmp_path, ",".join(names)), HSAConfig(rules=str(rules)))
    typed_args = lf.args(tmp_path, ",".join(f"{name}_typed" for name in names))
    typed = lf.prepare(typed_args, HSAConfig())
    same = [[(row["input_ids"], row["labels"], row["semantic_ids"]) for row in p.rows()] for p in (raw, typed)]
    assert same[0] == same[1] and len(same[0]) == 9
    assert {tuple(sorted(set(row[2]))) for row in same[0]} == {(G, L, N)}
    same_ids(typed, lf.prepare(typed_args))
