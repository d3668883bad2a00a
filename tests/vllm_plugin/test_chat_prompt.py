"""The types of a chat prompt: given ones, then rules, then roles; of a prompt that was cut; and what cannot be told."""

import pytest

from hsa_factory import HSAConfig
from hsa_factory.training import encode_conversation
from hsa_factory.vllm.offline import chat_request
from hsa_factory.vllm.server.chat_prompt import ChatTyper
from hsa_factory.vllm.types import InvalidTypes, types_of


ROLES = HSAConfig(default_type="NOISE", generated_type="LANDMARK")
RULES = HSAConfig(
    default_type="NOISE", noise_turns=1, rules=[{"role": "user", "contains": "apple", "type": "LANDMARK"}]
)
THINKING = HSAConfig(rules=[{"tag": "think", "type": "NOISE"}])
TALK = [
    {"role": "system", "content": "You are a robot."},
    {"role": "user", "content": "take the red apple"},
    {"role": "assistant", "content": "It opens the fridge."},
    {"role": "user", "content": "the fridge opens"},
]


def ids_of(tokenizer, messages, **options):
    options = {"add_generation_prompt": True, **options}
    return tokenizer.apply_chat_template([dict(m) for m in messages], return_dict=True, **options)["input_ids"]


def read(tokenizer, config, messages, ids=None, **options):
    """Return what the engine gets, and the tokens of the prompt."""
    ids = ids_of(tokenizer, messages) if ids is None else ids
    fields = ChatTyper(tokenizer, config).fields(messages, ids, **options)
    return types_of(fields, len(ids), config), ids


def by_message(tokenizer, prompt, ids):
    """Return the types at the end of each message, a generation header as the last one."""
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    ends = [place for place, token in enumerate(ids) if token == start][1:]
    return [sorted(set(prompt.types[end - 4 : end].tolist())) for end in [*ends, len(ids)]]


def test_roles_decide_where_nothing_else_does(tiny_tokenizer):
    prompt, ids = read(tiny_tokenizer, ROLES, TALK)
    assert by_message(tiny_tokenizer, prompt, ids) == [[0], [0], [1], [2], [2]]
    assert prompt.turns is None and prompt.roles is None


def test_rules_before_roles_and_given_types_before_rules(tiny_tokenizer):
    prompt, ids = read(tiny_tokenizer, RULES, TALK)
    assert by_message(tiny_tokenizer, prompt, ids) == [[0], [1], [2], [2], [2]]
    assert prompt.roles == ("system", "user", "assistant", "user")
    typed = [TALK[0], {**TALK[1], "semantic_type": "GLOBAL"}, {**TALK[2], "semantic_type": 0}, TALK[3]]
    prompt, ids = read(tiny_tokenizer, RULES, typed)
    assert by_message(tiny_tokenizer, prompt, ids) == [[0], [0], [0], [2], [2]]


def test_turns_go_on_to_the_header(tiny_tokenizer):
    prompt, ids = read(tiny_tokenizer, RULES, TALK)
    start = tiny_tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert [prompt.turns[place] for place, token in enumerate(ids) if token == start] == [0, 0, 0, 1, 1]
    prompt, _ = read(tiny_tokenizer, RULES, TALK[:3])  # replies in a row are one
    assert set(prompt.turns.tolist()) == {0}


def test_spans_and_parts(tiny_tokenizer):
    parts = [{"type": "text", "text": "take"}, {"type": "text", "text": " the red apple", "semantic_type": "LANDMARK"}]
    prompt, ids = read(tiny_tokenizer, ROLES, [{"role": "user", "content": parts}])
    text = [tiny_tokenizer.decode([token]) for token, kind in zip(ids, prompt.types) if kind == 1]
    assert "".join(text) == " the red apple"


def test_types_are_those_of_training(tiny_tokenizer):
    """Where every message has a type, the prompt's tokens have those that they had when the model was trained."""
    kinds = ("GLOBAL", "LANDMARK", "NOISE", "LANDMARK", "NOISE")
    talk = [{**message, "semantic_type": kind} for message, kind in zip([*TALK, TALK[2]], kinds)]
    row = encode_conversation(tiny_tokenizer, talk, RULES)
    prompt, ids = read(tiny_tokenizer, RULES, talk[:4])
    assert row["input_ids"][: len(ids)] == ids
    assert row["semantic_ids"][: len(ids)] == prompt.types.tolist()
    assert row["turn_ids"][: len(ids)] == prompt.turns.tolist()


@pytest.mark.parametrize("part", [slice(9, None), slice(None, 20), slice(-3, None), slice(None, None)])
def test_a_prompt_that_was_cut(tiny_tokenizer, part):
    whole, ids = read(tiny_tokenizer, RULES, TALK)
    prompt, _ = read(tiny_tokenizer, RULES, TALK, ids[part], is_cut=True)
    assert prompt.types.tolist() == whole.types[part].tolist() and prompt.turns.tolist() == whole.turns[part].tolist()


def test_a_reply_that_the_client_begins(tiny_tokenizer):
    talk = [*TALK[:2], {"role": "assistant", "content": "It opens", "semantic_type": "GLOBAL"}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    ids = ids_of(tiny_tokenizer, talk, **options)
    prompt, _ = read(tiny_tokenizer, ROLES, talk, ids, options=options)
    assert tiny_tokenizer.decode(ids).endswith("It opens") and prompt.types[-1] == 0
    with pytest.raises(InvalidTypes, match="continue_final_message: the rules"):
        read(tiny_tokenizer, THINKING, talk, ids, options=options)


def test_a_prompt_without_a_header(tiny_tokenizer):
    ids = ids_of(tiny_tokenizer, TALK, add_generation_prompt=False)
    prompt, _ = read(tiny_tokenizer, ROLES, TALK, ids, options={"add_generation_prompt": False})
    assert by_message(tiny_tokenizer, prompt, ids) == [[0], [0], [1], [2]]


def test_tools_and_another_template(tiny_tokenizer):
    template = "{{ tools[0].name }}{% for m in messages %}|{{ m.content }}{{ extra }}{% endfor %}"
    tools = [{"name": "walk"}]
    ids = ids_of(tiny_tokenizer, TALK, chat_template=template, tools=tools, extra="!")
    options = {"extra": "!", "documents": None, "add_generation_prompt": True, "tools": tools}
    prompt, _ = read(tiny_tokenizer, ROLES, TALK, ids, tools=tools, chat_template=template, options=options)
    assert set(prompt.types.tolist()) == {0, 1, 2} and len(prompt) == len(ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids, talk: (ids[1:], talk), "writes this conversation as other tokens"),
        (lambda ids, talk: (ids[:-30], talk), "writes this conversation as other tokens"),
        (lambda ids, talk: ([], talk), "writes this conversation as other tokens"),
        (lambda ids, talk: (ids, [{**talk[0], "content": "You are"}, *talk[1:]]), "writes this conversation as other"),
        (lambda ids, talk: (ids, [{"role": "robot", "content": "x"}]), "turn 0: role 'robot' is not allowed"),
        (lambda ids, talk: (ids, []), "the conversation is empty"),
    ],
)
def test_what_cannot_be_told_is_refused(tiny_tokenizer, change, message):
    ids, talk = change(ids_of(tiny_tokenizer, TALK), TALK)
    with pytest.raises(InvalidTypes, match=message):
        read(tiny_tokenizer, ROLES, talk, ids)


@pytest.mark.parametrize(
    "options", [{}, {"add_generation_prompt": False}, {"chat_template": "{{ messages[0].content }}"}]
)
def test_a_conversation_without_a_server(tiny_tokenizer, options):
    talk = TALK[:1] if "chat_template" in options else [*TALK[:3], {**TALK[3], "semantic_type": "GLOBAL"}]
    prompt, fields = chat_request(tiny_tokenizer, talk, ROLES, **options)
    assert prompt["prompt_token_ids"] == ids_of(tiny_tokenizer, talk, **options)
    known = types_of(fields, len(prompt["prompt_token_ids"]), ROLES)
    assert known.types[-1] == 0 and set(known.types.tolist()) == ({0} if len(talk) == 1 else {0, 1})


def test_rules_that_count_turns_need_the_roles(tiny_tokenizer):
    typer = ChatTyper(tiny_tokenizer, HSAConfig(rules=[{"role": "assistant", "turn": 2, "type": "NOISE"}]))
    assert typer.tagger(("user", "assistant", "user")).semantic_type == 0
    with pytest.raises(InvalidTypes, match="hsa_roles of vllm_xargs"):
        typer.tagger(None)
