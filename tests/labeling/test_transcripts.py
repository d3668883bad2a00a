"""The presets on what people post: how agents write their steps, and whole transcripts as data sets have them."""

import pytest

from hsa_factory.labeling.matching import Message, label_messages
from hsa_factory.labeling.rule_set import RuleSet
from hsa_factory.semantics import SemanticType
from hsa_factory.typed.spans import fill_gaps


G, L, N = SemanticType
ACT = "go to desk 1"


def typed(messages, preset):
    """Return (part of a text, type) of each run, a list for each message."""
    typings = label_messages([Message(role, text) for role, text in messages], RuleSet.parse(preset))
    return [
        [(text[start:end], kind) for start, end, kind in fill_gaps(t.spans, len(text), t.semantic_type)]
        for t, (_, text) in zip(typings, messages, strict=True)
    ]


def parts(text, preset="react"):
    return typed([("assistant", text)], preset)[0]


@pytest.mark.parametrize(
    ("before", "action"),
    [
        ("Thought: x\n", f"Action: {ACT}"),
        ("THOUGHT: x\n", f"ACTION: {ACT}"),
        ("thought: x\n", f"action: {ACT}"),
        ("Think: x\n\n", f"Act: {ACT}"),
        ("Thought:\nx\n\n", f"Action:\n{ACT}"),
        ("**Thought:** x\n", f"**Action:** {ACT}"),
        ("**Thought**: x\n", f"**Action**: {ACT}"),
        ("*Thought:* x\n", f"*Action 3:* {ACT}"),
        ("### Thought\nx\n", f"### Action\n{ACT}"),
        ("## Thought: x\n", f"## Action: {ACT}"),
        ("  Thought: x\n", f"   Action: {ACT}"),
        ("\tThought: x\n", f"\tAction: {ACT}"),
        ("- Thought: x\n", f"- Action: {ACT}"),
        ("1. Thought: x\n", f"2. Action: {ACT}"),
        ("Thought 1: x\n", f"Action 1: {ACT}"),
        ("Thought[1]: x\n", f"Action[1]: {ACT}"),
        ("Thought #1: x\n", f"Action #1: {ACT}"),
        ("Thought : x\n", f"Action : {ACT}"),
        ("[Thought] x\n", f"[Action] {ACT}"),
        ("THOUGHT\nx\n", f"ACTION\n{ACT}"),
        ("Thought: x\r\n", f"Action: {ACT}\r\n"),
        ("Thought: x. ", f"Action: {ACT}"),
        ("THOUGHT: x ", f"ACTION: {ACT}"),
        ("Thought: x\n", f"Next Action: {ACT}"),
        ("Thought: x\n", f"Action: search\nAction Input: {ACT}"),
        ("Thought: x\n", f"Tool: search\nTool Input: {ACT}"),
        ("Thought: x\n", f"Code:\n```py\n{ACT}\n```"),
        ("Thought: x\n", f"Action:\n```json\n{ACT}\n```"),
        ("THOUGHT: x\n\n", f"```bash\n{ACT}\n```"),
        ("DISCUSSION\nx\n", f"```\n{ACT}\n```"),
        ("x\n\n", f"```mswea_bash_command\n{ACT}\n```"),
        ("", f"> {ACT}"),
        ("Thought: x\n", f"> {ACT}"),
        ("<think>x</think>\n", f"<action>{ACT}</action>"),
        ("<thought>x</thought>", f"<action>\n{ACT}\n</action>"),
        ("x\n", f"<function=bash>\n<parameter=command>{ACT}</parameter>\n</function>"),
        ("x\n", f"<execute_bash>\n{ACT}\n</execute_bash>"),
        ("思考：x\n", f"行动：{ACT}"),
        ("Thought: x\n", f"Final Answer: {ACT}"),
        ("Thought: x\n", f"**Final Answer:** {ACT}"),
        ("Thought: x\n", f"Answer: {ACT}"),
        ('{"thought": "x", ', f'"action": "{ACT}"}}'),
        ("thought: x. ", f"action: {ACT}"),
        ("Thought: x\n", f"Operation: {ACT}"),
        ("Thought: x\n", f"Function call: {ACT}"),
        ("Thought: x\n", f"Action Type: {ACT}\nAction Target: 5"),
        ("Thought: x\n", f"Execute: {ACT}"),
        ("Thought: x\n", f"My next action: {ACT}"),
        ("Thought: x\n", "search[red shoes]"),
        ("<think>x</think>\n", f"<search>{ACT}</search>"),
        ("<think>x</think>\n", f"<python>{ACT}</python>"),
    ],
)
def test_steps_of_react(before, action):
    assert parts(before + action) == ([(before, N)] if before else []) + [(action, L)]


@pytest.mark.parametrize(
    "text",
    [
        "OK",
        "> think: I must find it.",
        "think: I must find it.",
        "Thought: the next action is clear, and so is the answer",
        "Thought: interaction: none; fact: x; my action: no",
        "<think>Action: go</think>",
        "I take these into action",
        "Observation: On the desk 1, you see a mug.",
        "Thought: I take care: action: matters, and my decision: none",
        "I call think[x], then search[y]",
    ],
)
def test_what_is_no_action(text):
    assert parts(text) == [(text, N)]


def test_steps_end_where_the_next_begins():
    text = "Thought: a\nAction: b. C. d\ne Observation: f\n**Thought 2:** g Action: h"
    assert [kind for _, kind in parts(text)] == [N, L, N, L]
    assert parts(text)[1][0] == "Action: b. C. d\ne " and parts(text)[3][0] == "Action: h"


def test_an_alfworld_transcript_in_one_reply():
    text = "> think: To solve it, I find a mug.\nOK.\n> go to desk 1\nOn the desk 1, you see a mug 1.\n> take mug 1"
    assert [(part.strip(), kind) for part, kind in parts(text)][1:] == [
        ("> go to desk 1", L),
        ("On the desk 1, you see a mug 1.", N),
        ("> take mug 1", L),
    ]


def kinds(messages, preset):
    """Return each message's types in a row, such as "NL"."""
    return ["".join("GLN"[kind] for _, kind in row) for row in typed(messages, preset)]


ETO = [
    ("user", "Interact with a household to solve a task. …\nAction: your next action"),
    ("assistant", "OK"),
    ("user", "You are in the middle of a room. …\n\nYour task is to: put a toiletpaper in toiletpaperhanger."),
    ("assistant", "Thought: I need a roll.\nAction: go to toilet 1"),
    ("user", "Observation: On the toilet 1, you see a toiletpaper 1."),
    ("assistant", "Thought: I've found it.\nAction: take toiletpaper 1 from toilet 1"),
]
AGENT_INSTRUCT = [
    ("user", "Interact with a household … ACTION: your next action"),
    ("assistant", "OK. I'll follow your instructions and try my best to solve the task."),
    ("user", "Here is your task. You are in the middle of a room. …\nYour task is to: clean some ladle."),
    ("assistant", "\nTHOUGHT: First I find a ladle. \nACTION: go to countertop 1"),
    ("user", "On the countertop 1, you see a bread 1.\nAVAILABLE ACTIONS: go to cabinet 1"),
    ("assistant", "ACTION: go to cabinet 1"),
]
AGENT_INSTRUCT_OS = [
    ("user", "You are an assistant … Act: bash\n\n```bash\n# put your code here\n```\n…"),
    ("assistant", "Think: I list the files.\n\nAct: bash\n\n```bash\nls /etc | wc -l\n```"),
    ("user", "The output of the OS:\n\n220"),
    ("assistant", "Think: That is it.\n\nAct: answer(220)"),
]
AGENT_INSTRUCT_DB = [
    ("user", "I will ask you a question, then you should help me operate a MySQL database …"),
    ("assistant", "Ok."),
    ("user", "How many cities are there?\nThe name of this table is Cities, and the headers of this table are City."),
    ("assistant", "I count them.\n\nAction: Operation\n```sql\nSELECT COUNT(*) FROM Cities;\n```"),
    ("user", "[(3,)]"),
    ("assistant", 'That is it.\n\nAction: Answer\nFinal Answer: ["3"]'),
]
MINI_SWE_AGENT = [
    ("system", "You are a helpful assistant … ```bash\nyour_command_here\n```"),
    ("user", "Please solve this issue: …"),
    ("assistant", "THOUGHT: I look around.\n\n```bash\nls -la\n```"),
    ("user", "<returncode>0</returncode>\n<output>\na.py\n</output>"),
    ("assistant", "THOUGHT: Done.\n\n```bash\necho COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT\n```"),
]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (ETO, ["G", "N", "G", "NL", "N", "NL"]),
        (AGENT_INSTRUCT, ["G", "N", "G", "NL", "N", "L"]),
        (AGENT_INSTRUCT_OS, ["G", "NL", "N", "NL"]),
        (AGENT_INSTRUCT_DB, ["G", "N", "G", "NL", "N", "NL"]),
        (MINI_SWE_AGENT, ["G", "G", "NL", "N", "NL"]),
    ],
)
def test_whole_transcripts_with_react(messages, expected):
    assert kinds(messages, "react") == expected


def test_swe_smith_and_openhands_with_tool_calls():
    call = "I look.\n<function=bash>\n<parameter=command>ls</parameter>\n</function>"
    talk = [("system", "s"), ("user", "Fix."), ("assistant", call), ("user", "OBSERVATION:\na.py")]
    talk += [
        ("user", "EXECUTION RESULT of [bash]:\na"),
        ("user", "<tool_response>\na\n</tool_response>"),
        ("user", "Go on"),
    ]
    assert kinds(talk, "tool-calls") == ["G", "G", "L", "N", "N", "N", "G"]


@pytest.mark.parametrize(
    "thought",
    [
        "<think>a</think>",
        "<thinking>a</thinking>",
        "a</think>",
        "a</thinking>",
        "<seed:think>a</seed:think>",
        "[THINK]a[/THINK]",
        "◁think▷a◁/think▷",
        "<|begin_of_thought|>a<|end_of_thought|>",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>",
    ],
)
def test_thoughts_of_think_tags(thought):
    assert parts(f"{thought}b", "think-tags") == [(thought, N), ("b", L)]


@pytest.mark.parametrize(
    "piece", ["so it is. And ", "Action: f(x)\n", "> a\n", "```\n", "*", "# ", '"action": {', "\n"]
)
def test_long_replies_are_no_trouble(piece):
    """A pattern may take a second on a message; these are as long as a model's context."""
    text = piece * (100_000 // len(piece))
    assert sum(len(part) for part, _ in parts(text)) == len(text)
