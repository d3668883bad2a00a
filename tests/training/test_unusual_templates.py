"""Templates written in other ways, parts of calls with types of their own, and the real Qwen vocabulary."""

import random
from pathlib import Path

import pytest
from chatting_templates import TEMPLATES, call, new_tokenizer, result, show

from hsa_factory import HSAConfig
from hsa_factory.training import encode_conversation


SHARED = Path(__file__).parents[2].parent / "shared"
ONE = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = {
    "by number": "{% for i in range(messages|length) %}"
    + ONE.replace("m.", "messages[i].")
    + "{% endfor %}"
    + OPENING,
    "by number, set": "{% for i in range(messages|length) %}{% set m = messages[i] %}"
    + ONE
    + "{% endfor %}"
    + OPENING,
    "gathered": (
        "{% set ns = namespace(t='') %}{% for m in messages %}"
        "{% set ns.t = ns.t ~ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' %}{% endfor %}{{ ns.t }}"
        + OPENING
    ),
    "in a block": "{% for m in messages %}{% set body %}" + ONE + "{% endset %}{{ body }}{% endfor %}" + OPENING,
    "by a macro": (
        "{% macro turn(m) %}" + ONE + "{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}" + OPENING
    ),
    "with tags": (
        "{% for m in messages %}{% generation %}" + ONE + "{% endgeneration %}\n{% endfor %}" + OPENING
    ).replace("<|im_end|>\n{% endgen", "<|im_end|>{% endgen"),
    "without a generation prompt": "{% for m in messages %}" + ONE + "{% endfor %}",
    "looking ahead": (
        "{% for m in messages %}{% if not loop.last and messages[loop.index0 + 1].role == 'nobody' %}x{% endif %}"
        + ONE
        + "{% endfor %}"
        + OPENING
    ),
}


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer("qwen3")


@pytest.mark.parametrize("way", CHATML)
def test_one_template_written_in_many_ways(tokenizer, way):
    messages = [
        {"role": "user", "content": "ask", "semantic_type": "NOISE"},
        {"role": "assistant", "content": "yes", "semantic_type": "LANDMARK"},
        {"role": "user", "content": "more", "semantic_type": "NOISE"},
        {"role": "assistant", "content": "no", "semantic_type": "GLOBAL"},
    ]
    row = encode_conversation(tokenizer, messages, HSAConfig(noise_turns=0), chat_template=CHATML[way])
    lines = [line.replace("<|im_end|>\n", "<|im_end|>").rstrip("\n") for line in show(row, tokenizer)]
    assert lines == [
        "N 0 <|im_start|>user\nask<|im_end|><|im_start|>assistant",
        "L*0 yes<|im_end|>",
        "N 1 <|im_start|>user\nmore<|im_end|><|im_start|>assistant",
        "G*1 no<|im_end|>",
    ]


def test_a_template_that_cannot_be_aligned_is_an_error(tokenizer):
    whole = "{{ messages[0].content }}|{{ messages[1].content }}|{{ messages[2].content }}|{{ messages[3].content }}"
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]
    with pytest.raises(ValueError, match="outside any loop over the messages"):
        encode_conversation(tokenizer, messages, HSAConfig(), chat_template=whole)


@pytest.mark.parametrize(("name", "form"), [("qwen3", "object"), ("qwen3", "text"), ("glm4", "object")])
def test_values_of_a_call_keep_the_types_of_their_parts(name, form):
    calling = call(name, 'the "red" apple')
    if form == "text":
        calling["tool_calls"][0]["function"]["arguments"] = '{"at": "the \\"red\\" apple"}'
    messages = [{"role": "user", "content": "ask"}, calling, result("seen"), {"role": "assistant", "content": "yes"}]
    config = HSAConfig(rules=[{"pattern": "apple", "type": "NOISE"}, {"role": "function", "type": "LANDMARK"}])
    tokenizer = new_tokenizer(name)
    row = encode_conversation(tokenizer, messages, config)
    noise = tokenizer.decode([token for token, kind in zip(row["input_ids"], row["semantic_ids"]) if kind == 2])
    assert noise == "apple"
    (line,) = [line for line in show(row, tokenizer) if "red" in line]
    assert line.startswith("L*0 ")


def test_the_real_vocabulary_of_qwen():
    if not (SHARED / "tokenizers" / "qwen").is_dir():
        pytest.skip("../shared is absent")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHARED / "tokenizers" / "qwen")
    rng = random.Random(0)
    pieces = [
        "The robot",
        " opens",
        "\n\n",
        "  ",
        "拿起 🍎",
        "naïve",
        "<think>\nhm\n</think>\n\n",
        "1,234",
        " the fridge.",
    ]
    for name in ("qwen2_5", "qwen3", "qwen2_vl"):
        tokenizer.chat_template = TEMPLATES[name]
        for _ in range(10):
            messages = [
                {"role": role, "content": "".join(rng.choices(pieces, k=rng.randint(1, 6))), "semantic_type": kind}
                for kind, role in enumerate(("system", "user", "assistant"))
            ]
            row = encode_conversation(tokenizer, messages, HSAConfig())
            assert (
                row["input_ids"] == tokenizer.apply_chat_template([dict(message) for message in messages])["input_ids"]
            )
            labels = [label for label in row["labels"] if label != -100]
            assert tokenizer.decode(labels).endswith("<|im_end|>\n")
            shown = [line[0] for line in show(row, tokenizer)]
            assert shown == ["G", "L", "N"] or shown == ["G", "L", "L", "N"]
