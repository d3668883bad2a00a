"""Every registered template: LLaMA-Factory's ids and labels, and each token with the type of its message.

Each message consists of marks of its own, so that types can be read off the ids; and the oracle knows the message of
every other token, from plain LLaMA-Factory alone.
"""

import itertools
import json
from unittest.mock import MagicMock

import pytest
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.data.processor import SupervisedDatasetProcessor
from llamafactory.data.template import TEMPLATES, Llama2Template, ReasoningTemplate
from llamafactory.hparams import DataArguments

from hsa_factory import FeedbackConfig, HSAConfig
from hsa_factory.llamafactory.data.processor import TypedSupervisedProcessor
from hsa_factory.llamafactory.inspect.trace import record_sample


G, L, N = 0, 1, 2
EFFICIENT_EOS = sorted(name for name, template in TEMPLATES.items() if template.efficient_eos)
LLAMA2_STYLE = sorted(name for name, template in TEMPLATES.items() if isinstance(template, Llama2Template))
REASONING = sorted(name for name, template in TEMPLATES.items() if isinstance(template, ReasoningTemplate))
TOOLS = json.dumps(
    [
        {
            "name": "look",
            "description": "<m39>",
            "parameters": {
                "type": "object",
                "properties": {"at": {"type": "string", "description": "what"}},
                "required": ["at"],
            },
        }
    ]
)
SYSTEM_MARK, TOOL_MARK = 40, 39
MATTERS_NOT = (
    "mm_plugin",
    "default_system",
    "stop_words",
)  # to a conversation of text with a system prompt of its own
# Of any vision-language model: without media, plugins ask it for little more than what is here.
PROCESSOR = MagicMock(image_seq_length=4, boi_token="<boi>", full_image_sequence="<boi><image><eoi>")


def user(k, text=None):
    return {"role": "user", "content": text or f"<m{k}><m{k}><m{k}>"}


def assistant(k, text=None):
    return {"role": "assistant", "content": text or f"<m{k}><m{k}><m{k}>"}


def observation(k):
    return {"role": "observation", "content": f"<m{k}><m{k}>"}


def function(k, thought=""):
    return {"role": "function", "content": thought + json.dumps({"name": "look", "arguments": {"at": f"<m{k}>"}})}


def conversations(template):
    """Return (messages, their types, system, its type, tools)."""
    start, end = template.thought_words
    thought = lambda k: f"{start}<m{k}>{end}"  # noqa: E731
    plain = [user(0), assistant(1), user(2), assistant(3), user(4), assistant(5)]
    thinking = [user(0), assistant(1, thought(1) + "<m1>"), user(2), assistant(3), user(4), assistant(5, thought(5))]
    tools = [user(0), function(1), observation(2), function(3, thought(3)), observation(4), assistant(5)]
    if isinstance(template, Llama2Template):  # LLaMA-Factory cannot take a thought before a tool call there
        tools[3] = function(3)
    return [
        (plain, [L, N, G, L, N, G], "", G, ""),
        (plain[:4], [N, L, N, G], "<m40><m40>", L, ""),
        (thinking, [N, G, L, N, G, L], "<m40>", G, ""),
        (tools, [L, G, N, L, G, N], "<m40>", N, TOOLS),
        (tools, [N, L, G, N, L, N], "", G, TOOLS),
    ]


def check(lf, template, tokenizer, samples, **options):
    """Compare the typed processor with plain LLaMA-Factory, id by id; return the rows."""
    data_args = DataArguments(**options)
    samples = [
        ([{**message, "semantic_type": kind} for message, kind in zip(messages, types)], *rest)
        for messages, types, *rest in samples
    ]
    plain = SupervisedDatasetProcessor(template, tokenizer, PROCESSOR, data_args)
    expected = plain.preprocess_dataset(lf.Oracle.columns(samples))
    oracle = lf.Oracle(template, tokenizer, data_args, samples, processor=PROCESSOR)
    rows, account = lf.typed_rows(template, tokenizer, data_args, samples, processor=PROCESSOR)

    kept = [i for i, labels in enumerate(expected["labels"]) if any(label != -100 for label in labels)]
    assert kept == oracle.kept
    assert len(rows) == len(kept) == account["kept"]
    marks = lf.mark_ids(tokenizer)
    for row, known, i in zip(rows, oracle.rows, kept):
        assert row["input_ids"] == expected["input_ids"][i] == known["input_ids"]
        assert row["labels"] == expected["labels"][i] == known["labels"]
        assert all(type(token) is int for token in row["input_ids"] + row["labels"])
        assert len(row["semantic_ids"]) == len(row["input_ids"])
        assert row["turn_ids"] == known["turn_ids"]

        messages, system, system_type, _ = samples[i]
        by_mark = dict(enumerate(message["semantic_type"] for message in messages))
        by_mark |= dict.fromkeys((SYSTEM_MARK, TOOL_MARK), system_type if system else G)
        for token, kind, known_kind in zip(row["input_ids"], row["semantic_ids"], known["semantic_ids"]):
            if known_kind is not None:
                assert kind == known_kind
            if token in marks:
                assert kind == by_mark[marks[token]]
    return rows


def option_sets(template):
    """Return what to vary; long and short cuts, and what reasoning templates know."""
    reasoning = isinstance(template, ReasoningTemplate)
    for enable_thinking in (True, False, None) if reasoning else (True,):
        yield {"enable_thinking": enable_thinking}
        yield {"enable_thinking": enable_thinking, "mask_history": True, "cutoff_len": 41}
    yield {"cutoff_len": 33}
    yield {"mask_history": True}
    if not template.efficient_eos:
        yield {"train_on_prompt": True, "cutoff_len": 57}
    if reasoning:
        yield {"mask_history": True, "preserve_thinking": True}


def fixed(name, tokenizer, **options):
    """Return the template, with a tokenizer that knows the tokens it names, as its models' do."""
    slots = [
        slot
        for formatter in vars(TEMPLATES[name]).values()
        for slot in getattr(formatter, "slots", [])
        if isinstance(slot, dict)
    ]
    tokenizer.add_tokens([slot["token"] for slot in slots], special_tokens=True)
    return get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name, **options))


def later_ones_long():
    """Return all templates; those that write a conversation as an earlier one does are marked as long."""
    names, known = [], set()
    for name, template in sorted(TEMPLATES.items()):
        values = {key: repr(value) for key, value in vars(template).items() if key not in MATTERS_NOT}
        shape = (type(template), *values.items())
        names.append(pytest.param(name, marks=[pytest.mark.long] * (shape in known)))
        known.add(shape)
    return names


LATER_ONES_LONG = later_ones_long()


@pytest.mark.parametrize("name", LATER_ONES_LONG)
def test_every_template_keeps_its_ids_and_gets_the_types_of_its_messages(name, lf):
    tokenizer = lf.new_tokenizer()
    for options in option_sets(TEMPLATES[name]):
        template = fixed(name, tokenizer, **options)
        check(lf, template, tokenizer, conversations(template), **options)


@pytest.mark.parametrize("name", LATER_ONES_LONG)
def test_every_template_is_traced_to_its_messages(name, lf):
    """What `inspect` says: each token's message, what the cut took of it, and no token left out."""
    tokenizer = lf.new_tokenizer()
    for options in ({"cutoff_len": 61}, {"mask_history": True, "cutoff_len": 41}):
        template = fixed(name, tokenizer, **options)
        has_own_system = not isinstance(template, Llama2Template)
        data_args = DataArguments(**options)
        processor = TypedSupervisedProcessor(template, tokenizer, PROCESSOR, data_args)
        marks = lf.mark_ids(tokenizer)
        for messages, types, *rest in conversations(template):
            typed = [
                {**message, "semantic_type": kind, "turn": turn}
                for turn, (message, kind) in enumerate(zip(messages, types))
            ]
            columns = lf.Oracle.columns([(typed, *rest)])
            rows, _ = lf.typed_rows(template, tokenizer, data_args, [(typed, *rest)], processor=PROCESSOR)
            if not rows:
                continue
            (record,) = record_sample(processor, {name: values[0] for name, values in columns.items()}, 2, 100)
            assert record.input_ids == rows[0]["input_ids"]
            place = 100
            for turn in record.turns:
                assert turn.part == 2 and turn.start == place and turn.stop >= place
                place = turn.stop
                ids = record.input_ids[turn.start - 100 : turn.stop - 100]
                seen = {marks[token] for token in [*ids, *turn.cut_ids] if token in marks}
                if turn.role == "system":
                    assert seen <= {SYSTEM_MARK, TOOL_MARK} and turn.message is None
                else:
                    assert seen - (set() if has_own_system else {SYSTEM_MARK, TOOL_MARK}) <= {turn.message}
                    assert turn.role == messages[turn.message]["role"]
            assert place == 100 + len(record.input_ids)
            assert [turn.message for turn in record.turns if turn.role != "system"] == list(range(len(messages)))
            (described,) = json.loads(rows[0]["hsa_samples"])
            assert described["cut"] == sum(len(turn.cut_ids) for turn in record.turns)
            for reason, label in zip(record.reasons, rows[0]["labels"], strict=True):
                assert (reason is None) == (label != -100)


@pytest.mark.parametrize("name", LATER_ONES_LONG)
def test_every_template_with_the_real_qwen_vocabulary(name, lf, qwen_tokenizer):
    tokenizer = qwen_tokenizer
    eos, pad, chat_template = tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template
    try:
        template = fixed(name, tokenizer)
        text = [
            user(0, "<m0>Open the fridge,\n then 拿出一个苹果 🍎!"),
            assistant(1, "  <m1> I'll look 12,345 times…\n\n"),
            user(2, "naïve \t<m2>"),
            assistant(3, "done.<m3>"),
        ]
        samples = [*conversations(template), (text, [N, L, G, N], " <m40>You are\n", G, "")]
        check(lf, template, tokenizer, samples)
        check(lf, template, tokenizer, samples[-2:], mask_history=True, cutoff_len=50)
    finally:
        tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template = eos, pad, chat_template


@pytest.mark.parametrize("name", LLAMA2_STYLE)
@pytest.mark.parametrize("user_type", [L, N])
def test_a_system_prompt_fused_into_the_user_message_stays_global(name, user_type, lf):
    tokenizer = lf.new_tokenizer()
    template = fixed(name, tokenizer)
    messages = [user(0, "<m0>go<m0>"), assistant(1), user(2), assistant(3)]
    sample = (messages, [user_type, N, L, N], "<m40>be kind<m40>", G, "")
    rows = check(lf, template, tokenizer, [sample])
    ids, semantic_ids = rows[0]["input_ids"], rows[0]["semantic_ids"]
    system, own = tokenizer.convert_tokens_to_ids("<m40>"), tokenizer.convert_tokens_to_ids("<m0>")
    first, last = ids.index(system), len(ids) - 1 - ids[::-1].index(system)
    own_first, own_last = ids.index(own), len(ids) - 1 - ids[::-1].index(own)
    assert last < own_first
    assert set(semantic_ids[first : last + 1]) == {G}
    assert set(semantic_ids[own_first : own_last + 1]) == {user_type}
    response = next(i for i, label in enumerate(rows[0]["labels"]) if label != -100)
    changes = [kind for kind, _ in itertools.groupby(semantic_ids[:response])]
    assert changes in ([G, user_type], [user_type, G, user_type])  # one stretch of GLOBAL: the system prompt


@pytest.mark.parametrize("name", LLAMA2_STYLE[:1] + ["qwen"])
def test_types_between_system_and_user_follow_the_text(name, lf):
    """Without marks at the seam a token may cover both; it then takes the type that remembers more."""
    tokenizer = lf.new_tokenizer()
    template = fixed(name, tokenizer)
    sample = ([user(0, "open the fridge"), assistant(1)], [N, L], "The robot", G, "")
    rows = check(lf, template, tokenizer, [sample])
    text, start = "", []
    for token in rows[0]["input_ids"]:
        start.append(len(text))
        text += tokenizer.decode([token])
    system = range(text.index("The robot"), text.index("The robot") + len("The robot"))
    own = range(text.index("open the fridge"), text.index("open the fridge") + len("open the fridge"))
    kinds = dict(zip(start, rows[0]["semantic_ids"]))
    assert {kinds[place] for place in start if place in system} == {G}
    assert {kinds[place] for place in start if place in own} == {N}


@pytest.mark.parametrize("name", EFFICIENT_EOS)
def test_an_eos_at_the_end_takes_the_type_of_the_last_message(name, lf):
    tokenizer = lf.new_tokenizer()
    template = fixed(name, tokenizer)
    for last in (G, L, N):
        rows = check(lf, template, tokenizer, [([user(0), assistant(1)], [(last + 1) % 3, last], "", G, "")])
        assert rows[0]["input_ids"][-1] == tokenizer.eos_token_id
        assert rows[0]["semantic_ids"][-1] == last


@pytest.mark.parametrize("name", REASONING)
def test_an_empty_thinking_block_takes_the_type_of_its_side(name, lf):
    tokenizer = lf.new_tokenizer()
    for enable_thinking, kind in ((True, L), (False, N), (None, N)):
        template = fixed(name, tokenizer, enable_thinking=enable_thinking)
        samples = [([user(0), assistant(1)], [N, L], "", G, "")]
        rows = check(lf, template, tokenizer, samples, enable_thinking=enable_thinking)
        ids, block = rows[0]["input_ids"], template.get_thought_word_ids(tokenizer)
        (place,) = [i for i in range(len(ids)) if ids[i : i + len(block)] == block]
        assert rows[0]["semantic_ids"][place : place + len(block)] == [kind] * len(block)
        assert (rows[0]["labels"][place] != -100) == (enable_thinking is True)


@pytest.mark.parametrize("name", [*REASONING, *EFFICIENT_EOS])
def test_what_llamafactory_adds_itself_is_counted(name, lf):
    """One turn more than another sample has: one empty thinking block more, and still one EOS behind."""
    tokenizer = lf.new_tokenizer()
    template = fixed(name, tokenizer)
    filled = []
    for turns in (1, 2, 3):
        messages = [{**make(0), "semantic_type": N} for _ in range(turns) for make in (user, assistant)]
        _, account = lf.typed_rows(template, tokenizer, DataArguments(), [(messages, "", G, "")], processor=PROCESSOR)
        filled.append(account["filled_tokens"])
    block = len(template.get_thought_word_ids(tokenizer)) if name in REASONING else 0
    assert filled[1] - filled[0] == filled[2] - filled[1] == block
    assert filled[0] >= block + template.efficient_eos > 0


def test_a_default_system_prompt_is_global(lf):
    tokenizer = lf.new_tokenizer()
    template = fixed("qwen", tokenizer, default_system="<m40><m40>")
    rows = check(lf, template, tokenizer, [([user(0), assistant(1)], [N, L], "", N, "")])
    system = tokenizer.convert_tokens_to_ids("<m40>")
    kinds = [kind for token, kind in zip(rows[0]["input_ids"], rows[0]["semantic_ids"]) if token == system]
    assert kinds == [G, G]


def test_a_tool_format_of_its_own(lf):
    for tool_format in ("default", "glm4", "llama3", "qwen"):
        tokenizer = lf.new_tokenizer()
        template = fixed("qwen", tokenizer, tool_format=tool_format)
        check(lf, template, tokenizer, conversations(template)[3:], tool_format=tool_format)


@pytest.mark.parametrize("enable_thinking", [True, False, None])
def test_a_template_parsed_from_the_tokenizer(lf, enable_thinking):
    tokenizer = lf.new_tokenizer()
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(enable_thinking=enable_thinking))
    assert template not in TEMPLATES.values()
    check(lf, template, tokenizer, conversations(template), enable_thinking=enable_thinking)
    check(lf, template, tokenizer, conversations(template), mask_history=True, cutoff_len=30)

    thinking = lf.new_tokenizer()
    thinking.chat_template = thinking.chat_template.replace(
        "{{- message.content -}}",
        "{{- ('<think>\\n\\n</think>\\n\\n' if message.role == 'assistant' else '') + message.content -}}",
    )
    template = get_template_and_fix_tokenizer(thinking, DataArguments(enable_thinking=enable_thinking))
    assert isinstance(template, ReasoningTemplate)
    check(lf, template, thinking, conversations(template), enable_thinking=enable_thinking)


def test_no_template_at_all(lf):
    tokenizer = lf.new_tokenizer()
    tokenizer.chat_template = None
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments())
    assert template is TEMPLATES["empty"]
    check(lf, template, tokenizer, conversations(template))


@pytest.mark.parametrize("name", ["qwen", "llama2", "glm4", "gpt_oss"])
def test_a_message_without_a_type_has_the_default_type(name, lf):
    tokenizer = lf.new_tokenizer()
    template = fixed(name, tokenizer)
    untyped = [user(0), {**assistant(1), "semantic_type": None}]
    for default in (G, L, N):
        processor = TypedSupervisedProcessor(
            template, tokenizer, None, DataArguments(), hsa_config=HSAConfig(default_type=default)
        )
        rows = processor.preprocess_dataset(lf.Oracle.columns([(untyped, "", G, "")]))
        kinds = rows["semantic_ids"][0]
        assert set(kinds[kinds.index(default) :]) == {default}
        marks = lf.mark_ids(tokenizer)
        assert {kind for token, kind in zip(rows["input_ids"][0], kinds) if token in marks} == {default}


def test_the_registered_template_stays_as_it_is(lf):
    tokenizer = lf.new_tokenizer()
    template = fixed("qwen3", tokenizer)
    before = dict(template.__dict__)
    check(lf, template, tokenizer, conversations(template))
    TypedSupervisedProcessor(
        template, tokenizer, None, DataArguments(), hsa_config=HSAConfig(), feedback_config=FeedbackConfig()
    )
    assert template.__dict__ == before
    assert all(template.__dict__[name] is value for name, value in before.items())
