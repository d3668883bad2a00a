"""Episodes of chat messages: their tokens are the chat template's, their types those of training data."""

from pathlib import Path

import pytest
import torch

from hsa_factory import HSAConfig, enable_hsa, tiny
from hsa_factory.models import AgentBatch
from hsa_factory.training import encode_conversation


TEMPLATES = Path(__file__).parents[2] / "training" / "templates"
SPECIAL = (
    "[gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|> <start_of_turn> <end_of_turn> <bos> "
    "<|start_header_id|> <|end_header_id|> <|eot_id|>"
).split()
RULES = [
    {"role": "observation", "type": "NOISE"},
    {"tag": "think", "type": "NOISE"},
    {"role": "assistant", "contains": ["door"], "type": "LANDMARK"},
    {"role": "user", "turn": 0, "type": "LANDMARK"},
]
CONFIG = HSAConfig(rules=RULES, noise_turns=1, noise_window=3)
STOPS = {
    "qwen2_5": ["<|im_end|>"],
    "qwen3": ["<|im_end|>"],
    "glm4": ["<|user|>", "<|observation|>"],
    "llama3": ["<|eot_id|>"],
}
ASK = {"role": "user", "content": "find the knife"}


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = tiny.build_tokenizer(["you see a door and a knife, I open the door"] * 3, 1024, SPECIAL)
    tokenizer.bos_token = "<bos>"
    return tokenizer


@pytest.fixture(scope="module")
def models():
    return {family: tiny.build_model(family).eval() for family in ("qwen3", "llama", "gemma3_text", "gpt_oss")}


def make(model, tokenizer, name, config=CONFIG, **options):
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text("utf-8")
    options = {"rows": 2, "max_new_tokens": 40, "max_waiting": 2, "stop": STOPS[name]} | options
    return AgentBatch(enable_hsa(model, config), tokenizer, **options)


def check(agents, tokenizer, row, config=CONFIG):
    written = list(agents._rows[row].types)
    history, expected = agents.history(row), encode_conversation(tokenizer, agents.messages(row), config)
    assert {name: expected[name] for name in history if name in expected} == history
    length = min(len(written), len(history["semantic_ids"]))  # GLM's stop token is the next message's
    assert history["semantic_ids"][:length] == written[:length], "the model has read it with other types"


@pytest.mark.parametrize(
    ("name", "family"), [("qwen2_5", "qwen3"), ("qwen3", "gpt_oss"), ("glm4", "llama"), ("llama3", "gemma3_text")]
)
def test_a_finished_episode_is_the_training_row(models, tokenizer, name, family):
    """GLM ends a reply by the next message's header, Gemma-3 has sliding layers, gpt-oss sinks."""
    agents = make(models[family], tokenizer, name)
    thought = "<think>\nhm\n</think>\n\nI open the door" if name != "glm4" else "\nI open the door"
    agents.append_messages([[{"role": "system", "content": "be kind"}, ASK], [ASK]])
    for turn in range(3):
        replies = agents.act([[thought, f"{thought} twice"], [f"{thought} now"]])
        assert all(reply.is_complete for reply in replies)
        if turn < 2:
            role = "user" if name == "glm4" else "tool"
            agents.append_messages(
                [{"role": role, "content": f"you see a door {turn}"}, [{"role": role, "content": "a"}]]
            )
            for row in range(2):
                prompt = tokenizer.apply_chat_template(agents.messages(row), add_generation_prompt=True)["input_ids"]
                known = agents._rows[row]
                assert known.ids + known.header == prompt
    for row in range(2):
        check(agents, tokenizer, row)
    agents.finish([0, 1])
    check(agents, tokenizer, 0)


def test_each_reply_is_that_of_generate(models, tokenizer):
    """What a row writes freely, after its template's prompt, with rules that are known before the message."""
    config = HSAConfig(rules=[{"role": "observation", "type": "NOISE"}], generated_type="LANDMARK", noise_window=3)
    agents = make(models["llama"], tokenizer, "qwen2_5", config, max_new_tokens=5)
    news = [[ASK], [{"role": "system", "content": "be kind"}, ASK]]
    for _ in range(3):
        agents.append_messages(news, rewritten="read_again")
        rows = [agents._rows[row] for row in range(2)]
        prompts = [(row.ids + row.header, row.types + row.types[-1:] * len(row.header)) for row in rows]
        for (ids, types), reply in zip(prompts, agents.act()):
            output = agents.model.generate(
                torch.tensor([ids]),
                semantic_ids=torch.tensor([types]),
                attention_mask=torch.ones(1, len(ids)),
                max_new_tokens=5,
                do_sample=False,
                eos_token_id=tokenizer.convert_tokens_to_ids(STOPS["qwen2_5"]),
                pad_token_id=0,
            )
            assert list(reply.ids) == output[0, len(ids) :].tolist()[: len(reply.ids)] and reply.ids
        news = [{"role": "tool", "content": "a door"}, {"role": "tool", "content": "a knife, a door"}]
    assert set(agents.history(0)["semantic_ids"]) == {0, 1, 2}


def test_a_template_that_drops_thinking_is_named(models, tokenizer):
    agents = make(models["qwen3"], tokenizer, "qwen3")
    agents.append_messages({0: ASK})
    agents.act({0: ["<think>\nhm\n</think>\n\nI open the door"]})
    before = agents.history(0)
    with pytest.raises(ValueError, match=r"row 0, message 1 \(assistant\).*earlier thinking.*'<think>.*read_again"):
        agents.append_messages({0: ASK, 1: ASK})
    assert agents.history(0) == before and not agents.messages(1)
    agents.append_messages({0: ASK}, rewritten="read_again")
    assert agents.act({0: ["<think>\nwell\n</think>\n\nI go"]})[0].is_complete
    check(agents, tokenizer, 0)
    report = agents.report_row(0)
    assert report.replies == 2 and report.fed > report.tokens - 3


def test_types_of_messages_and_of_replies(models, tokenizer):
    agents = make(models["qwen3"], tokenizer, "qwen2_5", HSAConfig(noise_turns=0))
    agents.append_messages([{**ASK, "semantic_type": "LANDMARK"}, None])
    agents.act({0: ["I go"]}, types="NOISE")
    assert agents.messages(0)[-1] == {"role": "assistant", "content": "I go", "semantic_type": 2}
    check(agents, tokenizer, 0, HSAConfig(noise_turns=0))
    assert {1, 2} <= set(agents.history(0)["semantic_ids"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([ASK], "one value for each of the 2 rows"),
        ({1: "go"}, "row 1: expected a chat message"),
        ({1: []}, "row 1: the list of messages is empty"),
        ({1: {"role": "usr", "content": "x"}}, "row 1: turn 0: role 'usr'"),
        ({1: {**ASK, "semantic_type": "LOUD"}}, "row 1: .*LOUD"),
        ({7: ASK}, "there is no row 7"),
    ],
)
def test_messages_that_cannot_be_read(models, tokenizer, given, message):
    agents = make(models["qwen3"], tokenizer, "qwen2_5")
    with pytest.raises(ValueError, match=message):
        agents.append_messages({0: ASK} | given if isinstance(given, dict) else given)
    assert not agents.messages(0) and not agents.history(0)["input_ids"]


def test_texts_and_messages_do_not_mix(models, tokenizer):
    agents = make(models["qwen3"], tokenizer, "qwen2_5")
    agents.append({0: "go"}, "GLOBAL")
    agents.append_messages({1: ASK})
    with pytest.raises(ValueError, match=r"row 0: it was given texts by append"):
        agents.append_messages({0: ASK})
    with pytest.raises(ValueError, match=r"row 1: it is an episode of chat messages: go on with append_messages"):
        agents.append({1: "go"}, "GLOBAL")
    with pytest.raises(ValueError, match="row 1: .* give a message its semantic_type"):
        agents.retype(1, 0, 1, 2)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="chat_template"):
        agents.start(0)
        agents.append_messages({0: ASK})
