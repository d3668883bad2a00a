"""What is trained of a conversation, what is cut, what is refused: `encode_conversation` and its batched form."""

import datasets
import pytest
from chatting_templates import TEMPLATES, new_tokenizer

from hsa_factory import FeedbackConfig, HSAConfig, LossWeightsConfig
from hsa_factory.training import ConversationLeftOut, encode_conversation, encode_conversations


ASK, YES = {"role": "user", "content": "ask"}, {"role": "assistant", "content": "yes"}
BAD, BETTER = {"role": "user", "content": "<|feedback|> bad"}, {"role": "assistant", "content": "better"}
CONFIG = HSAConfig()


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer("qwen2_5")


def trained(tokenizer, messages, config=CONFIG, *args, **kwargs):
    """Return the text that is trained."""
    row = encode_conversation(tokenizer, messages, config, *args, **kwargs)
    return tokenizer.decode([label for label in row["labels"] if label != -100])


@pytest.mark.parametrize(
    ("feedback", "text"),
    [
        (None, "yes<|im_end|>\nbetter<|im_end|>\n"),
        (FeedbackConfig(), "better<|im_end|>\n"),
        (FeedbackConfig(scope="assistant"), "yes<|im_end|>\nbetter<|im_end|>\n"),
        (FeedbackConfig(scope="user", missing="error"), "better<|im_end|>\n"),
        (FeedbackConfig(train="recovery"), "better<|im_end|>\n"),
    ],
)
def test_feedback(tokenizer, feedback, text):
    assert trained(tokenizer, [ASK, YES, BAD, BETTER], CONFIG, feedback) == text


def test_feedback_knows_whose_text_a_marker_stands_in():
    """Gemma 3 writes the system prompt into the user's turn."""
    messages = [{"role": "system", "content": "never <|feedback|>"}, ASK, YES]
    gemma = new_tokenizer("gemma3")
    with pytest.raises(ConversationLeftOut, match=r"no <\|feedback\|> in a message of role 'user'"):
        encode_conversation(gemma, messages, CONFIG, FeedbackConfig(scope="user", missing="error"))
    assert trained(gemma, messages, CONFIG, FeedbackConfig(scope="system")) == "yes<end_of_turn>\n"


def test_a_marker_in_any_result_of_parallel_calls_fails_the_reply():
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "x"}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call, call]}
    results = [{"role": "tool", "content": text} for text in ("seen", "<|feedback|> bad")]
    text = trained(new_tokenizer("qwen3"), [ASK, calling, *results, BETTER], CONFIG, FeedbackConfig(train="recovery"))
    assert text == "<think>\n\n</think>\n\nbetter<|im_end|>\n"


@pytest.mark.parametrize("key", ["weight", "loss_weight", "loss_mask", "loss", "trainable"])
def test_a_message_may_be_kept_out_of_the_loss(tokenizer, key):
    value = 0 if "weight" in key else False
    assert trained(tokenizer, [ASK, {**YES, key: value}, ASK, BETTER]) == "better<|im_end|>\n"
    assert trained(tokenizer, [ASK, {**YES, "step_label": "mistake"}, ASK, BETTER]) == "better<|im_end|>\n"


def test_weights(tokenizer):
    weights = LossWeightsConfig(roles={"user": 0.5})
    row = encode_conversation(tokenizer, [ASK, {**YES, "weight": 2}], CONFIG, loss_weights=weights)
    pairs = [
        (tokenizer.decode([token]), weight)
        for token, label, weight in zip(row["input_ids"], row["labels"], row["loss_weights"])
        if label != -100
    ]
    assert "".join(text for text, weight in pairs if weight == 2) == "yes<|im_end|>\n"
    assert "ask" in "".join(text for text, weight in pairs if weight == 0.5)
    assert {weight for _, weight in pairs} == {0.5, 2.0}


def test_a_row_is_cut_at_its_end_after_all_is_decided(tokenizer):
    messages = [ASK, YES, BAD, BETTER]
    whole = encode_conversation(tokenizer, messages, HSAConfig(noise_turns=1), FeedbackConfig())
    length = len(whole["input_ids"]) - 4
    cut = encode_conversation(tokenizer, messages, HSAConfig(noise_turns=1), FeedbackConfig(), max_length=length)
    assert cut == {name: value[:length] for name, value in whole.items()}
    with pytest.raises(ConversationLeftOut, match="max_length = 40 leaves none"):
        encode_conversation(tokenizer, messages, CONFIG, FeedbackConfig(), max_length=40)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([{"role": "user", "content": None}, YES], "turn 0: 'content' is null"),
        ([ASK, {"role": "assistant"}], "turn 1: 'content' is null"),
        ([{"role": "system", "content": None}, ASK, YES], "turn 0: 'content' is null"),
        ([{"role": "usr", "content": "x"}, YES], "turn 0: role 'usr' is not allowed.* Did you mean 'user'"),
        ([{"role": "function", "content": "x"}, YES], "turn 0: role 'function' .* has the role tool"),
        ([ASK, {**YES, "semantic_type": "GLOBL"}], "turn 1: Unknown semantic type 'GLOBL'"),
        ([ASK, {**YES, "content": [{"type": "text"}]}], "turn 1: part 0: expected a `text`"),
        ([ASK, {**YES, "weight": -1}], "turn 1: weight -1 is not allowed"),
        ([ASK, {**YES, "weight": 0, "loss_weight": 2}], "turn 1: .* disagree"),
        ([ASK, {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}], "turn 1: tool_calls: KeyError"),
        ([ASK, "yes"], "turn 1: expected a message"),
        ([], "messages: the conversation is empty"),
        ("ask", "messages: expected a list"),
        ([ASK], "it has no reply"),
    ],
)
def test_what_cannot_be_trained_is_named(tokenizer, messages, problem):
    with pytest.raises(ValueError, match=problem):
        encode_conversation(tokenizer, messages, CONFIG)


def test_options_that_cannot_be_honoured_are_named(tokenizer):
    with pytest.raises(ValueError, match="max_length = 0 is not allowed"):
        encode_conversation(tokenizer, [ASK, YES], CONFIG, max_length=0)
    with pytest.raises(ValueError, match="add_generation_prompt is not to be chosen"):
        encode_conversation(tokenizer, [ASK, YES], CONFIG, add_generation_prompt=True)
    with pytest.raises(ValueError, match="tools: expected a list"):
        encode_conversation(tokenizer, [ASK, YES], CONFIG, tools=3)
    with pytest.raises(ValueError, match=r"no token '<none>'"):
        encode_conversation(tokenizer, [ASK, YES], CONFIG, FeedbackConfig(token="<none>"))
    with pytest.raises(ValueError, match="refuses the conversation: Roles must alternate"):
        encode_conversation(new_tokenizer("gemma2"), [ASK, ASK, YES], CONFIG)


def test_what_a_template_leaves_out_is_told(caplog):
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    messages = [ASK, {**YES, "tool_calls": [call]}, {"role": "tool", "content": "seen"}, YES]
    encode_conversation(new_tokenizer("phi3"), messages, CONFIG)
    assert "leaves out the tool_calls of messages with the role 'assistant'" in caplog.text
    assert "leaves out the content of messages with the role 'tool'" in caplog.text


def test_the_messages_stay_as_they_are(tokenizer):
    messages = [{"role": "user", "content": [{"type": "text", "text": "ask"}]}, dict(YES)]
    copies = [dict(message) for message in messages]
    encode_conversation(new_tokenizer("qwen3_vl"), messages, CONFIG)
    assert messages == copies


# -- the batched form ------------------------------------------------------------------------------------------


def test_a_data_set_is_mapped_by_workers_and_known_again(tokenizer):
    typed = [{**ASK, "semantic_type": "NOISE"}, YES]
    data = datasets.Dataset.from_list(
        [{"messages": typed}, {"messages": [ASK]}, {"messages": [ASK, YES, ASK, BETTER]}]
    )
    options = {
        "batched": True,
        "with_indices": True,
        "remove_columns": data.column_names,
        "fn_kwargs": {"tokenizer_or_processor": tokenizer, "config": HSAConfig(noise_turns=1)},
    }
    rows = data.map(encode_conversations, num_proc=2, **options)
    again = data.map(encode_conversations, num_proc=2, **options)
    assert rows._fingerprint == again._fingerprint
    expected = [
        encode_conversation(tokenizer, messages, HSAConfig(noise_turns=1)) for messages in (typed, data[2]["messages"])
    ]
    assert list(rows) == expected


def test_conversations_left_out_are_counted(tokenizer, caplog):
    batch = {"messages": [[ASK, YES], [ASK, YES, BAD, BETTER], [ASK]]}
    rows = encode_conversations(
        batch, tokenizer_or_processor=tokenizer, config=CONFIG, feedback=FeedbackConfig(missing="drop")
    )
    assert len(rows["input_ids"]) == 1
    assert "Left out 2 of 3 conversations: no feedback marker (2)" in caplog.text
    with pytest.raises(ValueError, match=r"row 7: it has no <\|feedback\|>"):
        encode_conversations(
            batch, [7, 8, 9], tokenizer_or_processor=tokenizer, config=CONFIG, feedback=FeedbackConfig(missing="error")
        )
    with pytest.raises(ValueError, match="row 2: it has no reply"):
        encode_conversations(
            batch, tokenizer_or_processor=tokenizer, config=CONFIG, feedback=FeedbackConfig(empty="error")
        )


def test_batches_say_which_row_and_column(tokenizer):
    with pytest.raises(ValueError, match="there is no column 'messages': the data set has 'talk'"):
        encode_conversations({"talk": []}, tokenizer_or_processor=tokenizer, config=CONFIG)
    batch = {"messages": [[ASK, YES], [ASK, {**YES, "weight": 2}]]}
    with pytest.raises(ValueError, match="row 1: .*weighed=True"):
        encode_conversations(batch, tokenizer_or_processor=tokenizer, config=CONFIG)
    rows = encode_conversations(batch, tokenizer_or_processor=tokenizer, config=CONFIG, weighed=True)
    assert set(rows["loss_weights"][0]) == {1.0} and 2.0 in rows["loss_weights"][1]
    none = encode_conversations({"messages": []}, tokenizer_or_processor=tokenizer, config=HSAConfig(noise_turns=1))
    assert none == {name: [] for name in ("input_ids", "attention_mask", "semantic_ids", "labels", "turn_ids")}


# -- tokenizers ------------------------------------------------------------------------------------------------


class _WithoutOffsets:
    """A tokenizer that does not say which characters a token stands for."""

    is_fast = False

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, text, **kwargs):
        assert "return_offsets_mapping" not in kwargs
        return self._tokenizer(text, **kwargs)


def test_a_tokenizer_without_offsets_is_asked_piece_by_piece(tiny_tokenizer):
    slow = _WithoutOffsets(tiny_tokenizer)
    messages = [{**ASK, "semantic_type": "NOISE"}, YES, ASK, BETTER]
    template = {"chat_template": TEMPLATES["qwen3"]}
    assert encode_conversation(slow, messages, CONFIG, **template) == encode_conversation(
        tiny_tokenizer, messages, CONFIG, **template
    )
    halves = [{"role": "user", "content": "Th"}, {"role": "assistant", "content": "e robot"}]
    with pytest.raises(ValueError, match=r"does not say which characters .* use_fast=True"):
        encode_conversation(
            slow, halves, CONFIG, chat_template="{% for message in messages %}{{ message.content }}{% endfor %}"
        )
