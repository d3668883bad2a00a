"""Conversations in the templates of many models: ids as transformers makes them, types, labels and turns as they must be."""

import json

import pytest
from chatting_templates import NO_SYSTEM, NO_TOOLS, TEMPLATES, TOOLS, call, new_tokenizer, result, show
from hypothesis import given, settings
from hypothesis import strategies as st

from hsa_factory import HSAConfig
from hsa_factory.training import encode_conversation


TOKENIZERS = {name: new_tokenizer(name) for name in TEMPLATES}
TYPES = ("GLOBAL", "LANDMARK", "NOISE")
PIECES = [
    "%s",
    " %s",
    "%s\n",
    "\t%s ",
    'a "%s" b',
    "%s\\n{{x}}",
    "naïve 拿 🍎 %s",
    "%s, %s",
    "<think>\nmused\n</think>\n\n%s",
]


def word(number):
    return f"wort{number:03d}x"


@st.composite
def conversations(draw):
    """Return a template's name and messages, each with a word of its own and a type."""
    name = draw(st.sampled_from(sorted(TEMPLATES)))
    messages, kinds = [], []

    def add(message):
        kinds.append(draw(st.integers(0, 2)))
        messages.append({**message, "semantic_type": TYPES[kinds[-1]]})

    def text():
        return draw(st.sampled_from(PIECES)).replace("%s", word(len(messages)))

    if name not in NO_SYSTEM and draw(st.booleans()):
        add({"role": "system", "content": text()})
    for _ in range(draw(st.integers(1, 4))):
        add({"role": "user", "content": text()})
        for _ in range(0 if name in NO_TOOLS else draw(st.integers(0, 2))):
            add(call(name, word(len(messages))))
            add(result(word(len(messages)) + " {result}"))
        add({"role": "assistant", "content": text()})
    tools = None if name in NO_TOOLS or not draw(st.booleans()) else TOOLS
    return name, messages, kinds, tools


@given(conversations())
@settings(max_examples=50)
def test_ids_types_labels_and_turns(conversation):
    name, messages, kinds, tools = conversation
    tokenizer = TOKENIZERS[name]
    row = encode_conversation(tokenizer, messages, HSAConfig(noise_turns=1, default_type="NOISE"), tools=tools)
    official = tokenizer.apply_chat_template([dict(message) for message in messages], tools=tools)
    assert row["input_ids"] == official["input_ids"]
    assert {len(row[key]) for key in row} == {len(row["input_ids"])}
    assert {type(value) for values in row.values() for value in values} == {int}
    turns = row["turn_ids"]
    assert turns == sorted(turns) and turns[0] == 0

    replies = 0
    for number, message in enumerate(messages):
        is_reply = message["role"] == "assistant"
        places = list(_places(row["input_ids"], tokenizer, word(number)))
        if not (is_reply and "mused" in message["content"]):
            assert places, (name, number)
        for place in places:
            assert row["semantic_ids"][place] == kinds[number]
            assert (row["labels"][place] != -100) == is_reply
            assert turns[place] == replies or message["role"] == "system"  # which Mistral writes in the last turn
        replies += is_reply
    assert all(label in (-100, token) for label, token in zip(row["labels"], row["input_ids"]))


def _places(ids, tokenizer, text):
    """Yield the tokens of each occurrence of a text that is not part of a call's name in another message."""
    wanted = tokenizer(text, add_special_tokens=False)["input_ids"]
    for start in range(len(ids) - len(wanted) + 1):
        if ids[start : start + len(wanted)] == wanted:
            yield from range(start, start + len(wanted))


SYSTEM = {"role": "system", "content": "be kind", "semantic_type": "LANDMARK"}
TASK = {"role": "user", "content": "find it", "semantic_type": "NOISE"}
MUSING = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nlooked", "semantic_type": "LANDMARK"}
MORE = {"role": "user", "content": "and now", "semantic_type": "GLOBAL"}
DONE = {"role": "assistant", "content": "done", "semantic_type": "NOISE"}
EXPECTED = {
    "qwen3": [
        "L 0 <|im_start|>system\nbe kind<|im_end|>\n",
        "N 0 <|im_start|>user\nfind it<|im_end|>\n<|im_start|>assistant\n",
        "L*0 looked<|im_end|>\n",
        "G 1 <|im_start|>user\nand now<|im_end|>\n<|im_start|>assistant\n",
        "N*1 <think>\n\n</think>\n\ndone<|im_end|>\n",
    ],
    "mistral": [
        "N 0 <bos>[INST] find it[/INST]",
        "L*0  <think>\nhm\n</think>\n\nlooked<|im_end|>",
        "G 1 [INST] ",
        "L 1 be kind",
        "G 1 \n\nand now[/INST]",
        "N*1  done<|im_end|>",
    ],
    "gemma3": [
        "N 0 <bos><start_of_turn>user\n",
        "L 0 be kind",
        "N 0 \n\nfind it<end_of_turn>\n<start_of_turn>model\n",
        "L*0 <think>\nhm\n</think>\n\nlooked<end_of_turn>\n",
        "G 1 <start_of_turn>user\nand now<end_of_turn>\n<start_of_turn>model\n",
        "N*1 done<end_of_turn>\n",
    ],
    "phi3": [
        "L 0 <bos><|system|>\nbe kind<|end|>\n",
        "N 0 <|user|>\nfind it<|end|>\n<|assistant|>\n",
        "L*0 <think>\nhm\n</think>\n\nlooked<|end|>\n",
        "G 1 <|user|>\nand now<|end|>\n<|assistant|>\n",
        "N*1 done<|end|>\n",
    ],
    "glm4": [
        "L 0 [gMASK]<sop><|system|>\nbe kind",
        "N 0 <|user|>\nfind it<|assistant|>",
        "L*0 \nlooked",
        "G*1 <|user|>",  # what the model stops at: the template writes no other end
        "G 1 \nand now<|assistant|>",
        "N*1 \ndone",
    ],
    "deepseek": [
        "L 0 <bos>be kind",
        "N 0 <|User|>find it<|Assistant|>",
        "L*0 \n\nlooked<|eos|>",
        "G 1 <|User|>and now<|Assistant|>",
        "N*1 done<|eos|>",
    ],
    "gpt_oss": [
        "L 0 <|start|>system<|message|>You are a large model.\nReasoning: medium<|end|><|start|>developer<|message|>"
        "# Instructions\n\nbe kind\n\n<|end|>",
        "N 0 <|start|>user<|message|>find it<|end|><|start|>assistant",
        "L*0 <|channel|>final<|message|><think>\nhm\n</think>\n\nlooked<|end|>",
        "G 1 <|start|>user<|message|>and now<|end|><|start|>assistant",
        "N*1 <|channel|>final<|message|>done<|return|>",
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_token_of_a_conversation(name):
    row = encode_conversation(TOKENIZERS[name], [SYSTEM, TASK, MUSING, MORE, DONE], HSAConfig(noise_turns=0))
    assert show(row, TOKENIZERS[name]) == EXPECTED[name]


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("qwen2_5", '<tool_call>\n{"name": "look", "arguments": {"at": "here"}}\n</tool_call><|im_end|>\n'),
        ("llama3", '{"name": "look", "parameters": {"at": "here"}}<|eot_id|>'),
        (
            "mistral",
            '[TOOL_CALLS] [{"name": "look", "arguments": {"at": "here"}, "id": "abcdefghi"}]<|im_end|>',
        ),
        ("glm4", 'look\n{"at": "here"}'),
        (
            "deepseek",
            '<|calls_begin|><|call_begin|>function<|sep|>look\n```json\n{"at": "here"}\n```<|call_end|><|calls_end|><|eos|>',
        ),
        ("gpt_oss", ' to=functions.look<|channel|>commentary json<|message|>{"at": "here"}<|call|>'),
    ],
)
def test_a_call_of_a_tool_is_trained_whole(name, reply):
    calling = {**call(name, "here"), "semantic_type": "LANDMARK"}
    messages = [TASK, calling, {**result("seen"), "semantic_type": "NOISE"}, {**DONE, "semantic_type": "GLOBAL"}]
    row = encode_conversation(TOKENIZERS[name], messages, HSAConfig(noise_turns=0), tools=json.dumps(TOOLS))
    shown = show(row, TOKENIZERS[name])
    assert f"L*0 {reply}" in shown
    text = "".join(line[4:] for line in shown if line[0] == "G" and line[1] == " ")
    assert ("toolword" in text) == (name != "deepseek")  # which describes none


@pytest.mark.parametrize("name", ["qwen2_5", "qwen2_vl", "llama3"])
def test_a_default_system_prompt_is_global(name):
    row = encode_conversation(TOKENIZERS[name], [TASK, DONE], HSAConfig(noise_turns=0, default_type="NOISE"))
    first, second, *_ = show(row, TOKENIZERS[name])
    assert first.startswith("G 0 ") and "system" in first and "find it" not in first
    assert second.startswith("N 0 ") and "system" not in second and "user" in second


@pytest.mark.parametrize("thinks", [True, False, None])
def test_an_empty_thought_is_trained_unless_the_prompt_holds_it(thinks):
    options = {} if thinks is None else {"enable_thinking": thinks}
    row = encode_conversation(TOKENIZERS["qwen3"], [TASK, DONE], HSAConfig(), **options)
    thought = TOKENIZERS["qwen3"].convert_tokens_to_ids("<think>")
    assert (thought in row["labels"]) == (thinks is not False)
    assert thought in row["input_ids"]


def test_parallel_results_and_thoughts_of_their_own_key():
    calling = call("qwen3", "here")
    calling["reasoning_content"] = "mused"
    messages = [TASK, calling, result("one"), {**result("two"), "semantic_type": "NOISE"}, DONE]
    row = encode_conversation(
        TOKENIZERS["qwen3"], messages, HSAConfig(noise_turns=0, rules=[{"tag": "think", "type": "NOISE"}])
    )
    assert show(row, TOKENIZERS["qwen3"]) == [
        "N 0 <|im_start|>user\nfind it<|im_end|>\n<|im_start|>assistant\n",
        "N*0 <think>\nmused\n</think>",
        'G*0 \n\n<tool_call>\n{"name": "look", "arguments": {"at": "here"}}\n</tool_call><|im_end|>\n',
        "G 1 <|im_start|>user\n<tool_response>\none\n</tool_response>",
        "N 1 \n<tool_response>\ntwo\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
        "N*1 <think>\n\n</think>\n\ndone<|im_end|>\n",
    ]
