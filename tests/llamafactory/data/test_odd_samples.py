"""Samples that people have and nobody meant: they train as plain LLaMA-Factory trains them, or the run says which it is."""

import pytest
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.data.template import TEMPLATES
from llamafactory.hparams import DataArguments

from hsa_factory import FeedbackConfig, HSAConfig


G, L, N = 0, 1, 2
EMPTY_PLACES = ([0], [1], [2], [3], [5], [2, 3], [4, 5], [0, 2, 4], [1, 3, 5], [0, 1, 2, 3, 4])


def encoder(lf, name, **options):
    """Return a template, a tokenizer that knows the tokens it names, and the options."""
    tokenizer = lf.new_tokenizer(lf.MARKER)
    slots = [slot for part in vars(TEMPLATES[name]).values() for slot in getattr(part, "slots", [])]
    tokenizer.add_tokens([slot["token"] for slot in slots if isinstance(slot, dict)], special_tokens=True)
    data_args = DataArguments(template=name, **options)
    return get_template_and_fix_tokenizer(tokenizer, data_args), tokenizer, data_args


def conversation(lf, empty=(), text=""):
    """Return six messages, each of a mark of its own and all types in turn, those of `empty` with another text."""
    messages = lf.dialogue([N, L, G, N, L, G])
    for k in empty:
        messages[k]["content"] = text
    return messages


def same_as_plain(lf, name, samples, feedback=None, **options):
    """Compare rows with the oracle; return them and their account."""
    template, tokenizer, data_args = encoder(lf, name, **options)
    facts = [(messages, "", G, "") for messages in samples]
    oracle = lf.Oracle(template, tokenizer, data_args, facts, feedback)
    rows, account = lf.typed_rows(template, tokenizer, data_args, facts, feedback)
    names = ("input_ids", "attention_mask", "labels", "semantic_ids", "loss_mask", "turn_ids")
    assert [{name: row[name] for name in names} for row in rows] == oracle.rows
    return rows, account


@pytest.mark.parametrize("name", ["gpt_oss", "fewshot", "empty", "qwen3", "olmo", "glm4_7"])
@pytest.mark.parametrize("text", ["", " "])
def test_empty_messages_train_with_every_option(lf, name, text):
    """Between them the templates have all that an empty message may leave: a BOS, a thinking block, nothing at all."""
    samples = [conversation(lf, places, text) for places in EMPTY_PLACES]
    modes = [{}, {"mask_history": True}, {"cutoff_len": 30}, {"neat_packing": True, "packing": True}]
    modes += [{"enable_thinking": False}, {"enable_thinking": None, "mask_history": True}]
    for options in modes:
        rows, _ = same_as_plain(lf, name, samples, **options)
        assert rows


def test_a_thinking_block_alone_has_the_type_of_its_message(lf):
    rows, _ = same_as_plain(lf, "gpt_oss", [conversation(lf, [3])])
    template, tokenizer, _ = encoder(lf, "gpt_oss")
    block, ids = template.get_thought_word_ids(tokenizer), rows[0]["input_ids"]
    first, second, third = (k for k in range(len(ids)) if ids[k : k + len(block)] == block)
    kinds = rows[0]["semantic_ids"]
    assert [set(kinds[k : k + len(block)]) for k in (first, second, third)] == [{L}, {N}, {G}]


def test_a_thinking_block_after_a_system_prompt_belongs_to_the_empty_message(lf):
    """A chat template that writes nothing around a user's text."""
    tokenizer = lf.new_tokenizer()
    reply = "{{ '<think>\\n\\n</think>\\n\\n' if m.role == 'assistant' else '' }}"
    tokenizer.chat_template = "{% for m in messages %}" + reply + "{{ m.content }}{% endfor %}"
    data_args = DataArguments(enable_thinking=False)
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    facts = [(conversation(lf, [0]), lf.MARKS[40], G, "")]
    (row,), _ = lf.typed_rows(template, tokenizer, data_args, facts)
    block = template.get_thought_word_ids(tokenizer)
    assert row["input_ids"][: len(block) + 1] == [tokenizer.convert_tokens_to_ids(lf.MARKS[40]), *block]
    assert row["semantic_ids"][: len(block) + 1] == [G, *[N] * len(block)]
    assert lf.Oracle(template, tokenizer, data_args, facts).rows[0]["semantic_ids"] == row["semantic_ids"]


def test_labels_stand_at_their_ids_after_an_empty_turn(lf):
    """LLaMA-Factory puts the stop token's label at the empty turn's first id, which is not there; all others moved by one."""
    whole, _ = same_as_plain(lf, "fewshot", [conversation(lf)])
    (row,), account = same_as_plain(lf, "fewshot", [conversation(lf, [2, 4])])
    marks = lf.mark_ids(encoder(lf, "fewshot")[1])
    assert len(row["labels"]) == len(row["input_ids"])
    for token, label in zip(row["input_ids"], row["labels"]):
        if token in marks:
            assert label == (token if marks[token] % 2 else -100)
    assert account["untrained_stops"] == 2
    stops = [sum(label != -100 and label != token for token, label in zip(r["input_ids"], r["labels"])) for r in whole]
    assert stops == [2]  # where the turns are not empty, their first ids carry them


def test_the_table_says_which_stop_tokens_are_not_trained(lf, tmp_path, capsys):
    data = lf.write_data(tmp_path, data=[conversation(lf, [2])])
    prepared = lf.prepare(lf.args(data, "data", template="fewshot"), HSAConfig())
    assert prepared.counts["untrained_stops"] == 1
    assert "data: the stop tokens of 1 reply are not trained" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["solar", "fewshot", "glm4"])
def test_a_weight_of_0_masks_the_stop_token_of_an_empty_reply(lf, name):
    messages = conversation(lf, [1])
    messages[1]["weight"] = 0
    (masked,), _ = same_as_plain(lf, name, [messages])
    (plain,), _ = same_as_plain(lf, name, [conversation(lf, [1])])
    assert sum(plain["loss_mask"]) > sum(masked["loss_mask"])


@pytest.mark.parametrize("feedback", [FeedbackConfig(occurrence="every"), FeedbackConfig(train="recovery")])
def test_a_failed_empty_reply_is_not_trained_to_stop(lf, feedback):
    messages = conversation(lf, [3])
    messages[0]["content"] += lf.MARKER
    messages[4]["content"] += lf.MARKER
    (row,), _ = same_as_plain(lf, "solar", [messages], feedback)
    stop = [k for k, (t, label) in enumerate(zip(row["input_ids"], row["labels"])) if label not in (-100, t)]
    assert [row["loss_mask"][k] for k in stop] == [1, 0]


def refused(lf, tmp_path, name, sample, good=()):
    """Return the error that a run with one bad sample ends with."""
    data = lf.write_data(tmp_path, data=[*good, sample])
    with pytest.raises(ValueError) as error:
        lf.prepare(lf.args(data, "data", template=name), HSAConfig())
    return str(error.value)


def test_a_content_of_null_is_named(lf, tmp_path):
    messages = [lf.say("system", "be kind"), *lf.dialogue([G, N, G, N])]
    messages[4]["content"] = None
    message = refused(lf, tmp_path, "qwen3", messages, [lf.dialogue([G, N])])
    assert message.startswith("dataset 'data', sample 1, turn 4: 'content' is null: ")


@pytest.mark.parametrize("call", ["look!", "", '{"n": 1}', '[["look"]]', "3", '{"name": "look"}'])
def test_a_tool_call_that_cannot_be_read_is_named(lf, tmp_path, call):
    messages = [lf.say("user", "go"), lf.say("function", call), lf.say("observation", "x"), lf.say("assistant", "y")]
    message = refused(lf, tmp_path, "qwen3", messages)
    assert message.startswith("dataset 'data', sample 0: turn 1 (function): ") and "JSON" in message


@pytest.mark.parametrize("tools", ["{", "3", '["look"]'])
def test_tools_that_cannot_be_read_are_named(lf, tmp_path, tools):
    message = refused(lf, tmp_path, "qwen3", {"messages": lf.dialogue([G, N]), "tools": tools})
    assert message.startswith("dataset 'data', sample 0: the description of the tools: ")


def test_a_token_that_the_tokenizer_lacks_is_named(lf, tmp_path):
    message = refused(lf, tmp_path, "chatglm3", lf.dialogue([G, N]))
    assert "the template writes '[gMASK]', which the tokenizer does not have" in message


def test_placeholders_without_media_are_counted(lf, tmp_path):
    data = lf.write_data(tmp_path, data=[[lf.say("user", "<image>" + "long " * 99), lf.say("assistant", "y")]])
    with pytest.raises(
        ValueError, match="^dataset 'data', sample 0: its messages hold 1 <image>, but it has 0 images:"
    ):
        lf.prepare(lf.args(data, "data", lf.model_dir("qwen2_vl"), template="qwen2_vl"), HSAConfig())

    bad_call = [lf.say("user", "<image>"), lf.say("function", "look!")]  # to a text model it is a text like others
    assert "turn 1 (function)" in refused(lf, tmp_path / "text", "qwen3", bad_call)
