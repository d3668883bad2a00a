"""Templates that meet other values than they foresee, and conversations that they do not take in every part."""

import pytest
from chatting_templates import call, new_tokenizer, result, show

from hsa_factory import HSAConfig
from hsa_factory.training import HSADataCollator, encode_conversation


# A call without a thought has an empty one in it, and the generation prompt opens a thought (Nemotron)
EMPTY_THOUGHT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n<f={{ c.function.name }}>{{ c.function.arguments }}</f>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# It refuses a conversation without a user's turn (Qwen3.5)
NEEDS_USER = (
    "{% if messages|selectattr('role', 'equalto', 'user')|list|length == 0 %}{{ raise_exception('No user.') }}{% endif %}"
    + EMPTY_THOUGHT
)
WRITES_LISTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content FILTER }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASK = {"role": "user", "content": "ask", "semantic_type": "NOISE"}
SAY = {"role": "assistant", "content": "yes", "semantic_type": "LANDMARK"}


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer("qwen3")


def trained(tokenizer, messages, template):
    row = encode_conversation(tokenizer, messages, HSAConfig(), chat_template=template)
    return [line[4:] for line in show(row, tokenizer) if line[1] == "*"]


@pytest.mark.parametrize("front", [[], [{"role": "system", "content": "rules"}]])
@pytest.mark.parametrize("template", [EMPTY_THOUGHT, NEEDS_USER])
def test_a_conversation_that_begins_with_a_call_is_trained_from_its_prompt_on(tokenizer, front, template):
    messages = [*front, call("qwen3", "home"), result("seen"), ASK, SAY]
    first, last = trained(tokenizer, messages, template)
    assert first.startswith("</think><tool_call>\n<f=look>") and first.endswith("</f><|im_end|>\n")
    assert last == "</think>yes<|im_end|>\n"


@pytest.mark.parametrize("form", ["", "|trim", "|string"])
def test_parts_that_a_template_writes_as_a_list_keep_their_types(tokenizer, form):
    config = HSAConfig(default_type="NOISE", rules=[{"pattern": "gold", "type": "LANDMARK"}])
    parts = [{"type": "text", "text": text} for text in ('it\'s "gold"\n\\', "ïron\t'")]
    messages = [{"role": "user", "content": parts}, SAY]
    row = encode_conversation(tokenizer, messages, config, chat_template=WRITES_LISTS.replace("FILTER", form))
    assert [line[4:] for line in show(row, tokenizer) if line[0] == "L"] == ["gold", "yes<|im_end|>\n"]


@pytest.mark.parametrize("form", ["", "|tojson"])
@pytest.mark.parametrize("writes", ["m.content", "m"])
def test_types_are_never_written_for_the_model_to_read(tokenizer, form, writes):
    parts = [{"type": "text", "text": "gold", "semantic_type": "GLOBAL"}]
    template = WRITES_LISTS.replace("m.content FILTER", writes + form)
    with pytest.raises(ValueError, match=r"writes 'semantic_type' of turn 0 into the text"):
        encode_conversation(tokenizer, [{**ASK, "content": parts}, SAY], HSAConfig(), chat_template=template)


def test_a_value_that_a_template_has_not_foreseen_is_named_as_the_user_gave_it(tokenizer):
    template = WRITES_LISTS.replace("{{ m.content FILTER }}", "{{ 'x' + m.content }}")
    parts = [{"type": "text", "text": "gold"}]
    with pytest.raises(ValueError, match=r'does not take the conversation: TypeError: can only .* \(not "list"\)'):
        encode_conversation(tokenizer, [{**ASK, "content": parts}, SAY], HSAConfig(), chat_template=template)


def test_a_template_that_reads_parts_only_in_some_roles(tokenizer):
    """What is tried out with a system prompt of parts is no conversation of the user's."""
    template = "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n' }}{% endif %}" + WRITES_LISTS
    row = encode_conversation(
        tokenizer,
        [{**ASK, "content": [{"type": "text", "text": "ask"}]}, SAY],
        HSAConfig(),
        chat_template=template.replace("m.content FILTER", "m.content if m.content is string else m.content[0].text"),
    )
    assert [line[0] for line in show(row, tokenizer)] == ["N", "L"]


def test_a_label_that_nothing_foretells_is_none(tiny_tokenizer):
    row = {"input_ids": [5, 6], "semantic_ids": [0, 0], "labels": [5, -100]}
    with pytest.raises(ValueError, match="No token of this batch is trained"):
        HSADataCollator(tiny_tokenizer)([row])


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"config": {}}, "config: expected an HSAConfig"),
        ({"feedback": True}, "feedback: expected a FeedbackConfig or None, got True"),
        ({"loss_weights": {}}, "loss_weights: expected a LossWeightsConfig or None"),
        ({"tokenizer_or_processor": "qwen"}, "expected a tokenizer or a processor"),
        ({"max_lenght": 5}, "max_lenght is no argument .* Did you mean 'max_length'"),
        ({"messages": [ASK | {"semantic_typ": "NOISE"}, SAY]}, "turn 0: unknown key 'semantic_typ'. Did you mean"),
        ({"messages": [ASK | {"content": "a\ud800b"}, SAY]}, "the chat template of .*: "),
    ],
)
def test_what_nobody_would_read_is_named(tokenizer, given, problem):
    usual = {"tokenizer_or_processor": tokenizer, "messages": [ASK, SAY], "config": HSAConfig()}
    with pytest.raises(ValueError, match=problem):
        encode_conversation(**usual | given)


def test_what_templates_read_is_handed_on(tokenizer):
    more = {"enable_thinking": False, "documents": [], "title": "t", "date_string": "d", "custom": 1, "max_tokens": 3}
    encode_conversation(tokenizer, [ASK, SAY | {"semantics": "x"}], HSAConfig(), **more)
