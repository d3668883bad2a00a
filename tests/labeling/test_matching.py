"""What rules say about conversations: who wins, which turns and parts are meant, and how often."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsa_factory import SemanticType
from hsa_factory.labeling.matching import Message, PatternTimeout, label_messages
from hsa_factory.labeling.rule_set import RuleSet
from hsa_factory.typed.spans import fill_gaps


G, L, N = SemanticType
UNTYPED = 255
SHARED = Path(__file__).parents[2].parent / "shared"
DATA = Path(__file__).parents[2] / "examples"


def label(messages, rules, matches=None):
    messages = [Message(*message) if isinstance(message, tuple) else message for message in messages]
    typings = label_messages(messages, RuleSet.parse(rules) if rules else None, matches)
    return [
        [(end - start, None if kind == UNTYPED else kind) for start, end, kind in spans]
        for spans in (
            fill_gaps(t.spans, len(m.text), UNTYPED if t.semantic_type is None else t.semantic_type)
            for m, t in zip(messages, typings)
        )
    ]


def types(messages, rules):
    """Return the types of messages that have one type each."""
    rows = label(messages, rules)
    assert all(len(row) == 1 for row in rows), rows
    return [row[0][1] for row in rows]


def parts(text, rules, role="assistant"):
    """Return (part of the text, type) of each run."""
    (row,) = label([(role, text)], rules)
    pieces, position = [], 0
    for length, kind in row:
        pieces.append((text[position : position + length], kind))
        position += length
    return pieces


class TestMessages:
    TALK = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]

    def test_the_first_rule_wins(self):
        rules = [{"role": "user", "type": 1}, {"role": ["user", "assistant"], "type": 2}, {"type": 0}]
        assert types(self.TALK, rules) == [G, L, N, L, N]

    @pytest.mark.parametrize(
        ("rule", "chosen"),
        [
            ({"role": "user", "turn": "first"}, {1}),
            ({"role": "user", "turn": "last"}, {3}),
            ({"role": "user", "turn": [0, 1, 2, -9]}, {1, 3}),
            ({"turn": "first"}, {1}),  # the system message is not counted
            ({"turn": [-1, 1]}, {2, 4}),
            ({"role": ["system", "user"], "turn": 1}, {1}),
            ({"role": "function", "turn": "first"}, set()),
            ({"contains": ["d", "x"]}, {4}),
            ({}, {0, 1, 2, 3, 4}),
        ],
    )
    def test_which_messages_are_meant(self, rule, chosen):
        assert types(self.TALK, [{**rule, "type": 1}]) == [L if k in chosen else None for k in range(5)]

    def test_types_in_the_data_win(self):
        messages = [("user", "abcd", 0), ("user", "abcd", None, ((1, 2, 0),)), ("user", "abcd", 2, ((1, 2, 0),))]
        assert label(messages, [{"type": 1}]) == [[(4, G)], [(1, L), (1, G), (2, L)], [(1, N), (1, G), (2, N)]]
        assert label(messages, None) == [[(4, G)], [(1, None), (1, G), (2, None)], [(1, N), (1, G), (2, N)]]

    def test_tools(self):
        call = lambda *names: json.dumps([{"name": name, "arguments": {}} for name in names])  # noqa: E731
        messages = [
            ("function", call("get_time")[1:-1]),
            ("observation", "12"),
            ("function", "<think>so [1]</think>" + call("look", "take")),
            ("observation", "ok"),
            Message("function", "anything", tools=("get_place",)),
            ("observation", "here"),
            ("function", "no call"),
            ("observation", "get_time"),
        ]
        rules = [
            {"role": ["function", "observation"], "tool": "get_*", "type": 2},
            {"tool": "take", "type": 1, "role": "tool"},
        ]
        assert types(messages, rules) == [N, N, None, L, N, N, None, None]
        assert types(messages, [{"tool": ["take", "g?t_time"], "type": 1}]) == [L] * 4 + [None] * 4
        assert types(messages, [{"tool": "*", "role": "function", "type": 1}])[::2] == [L, L, L, None]

    def test_matches_are_counted_where_they_decided(self):
        matches = Counter()
        rules = [
            {"name": "act", "tag": "t", "type": 1},
            {"name": "a", "pattern": "a", "type": 0},
            {"name": "user", "role": "user", "type": 2},
            {"name": "rest", "type": 2},
            {"name": "never", "type": 0},
        ]
        label([("user", "a<t>a</t>a<t></t>"), ("user", ""), ("assistant", "b"), ("user", "a", 0)], rules, matches)
        assert matches == {"act": 2, "a": 2, "rest": 1, "user": 1}


class TestParts:
    def test_tags_and_the_text_around_them(self):
        rules = [{"tag": "t", "type": 1}, {"type": 2}]
        assert parts("a<t>b</t>c", rules) == [("a", N), ("<t>b</t>", L), ("c", N)]
        assert parts("<t>b</t>", rules) == [("<t>b</t>", L)]
        assert parts("a<t>b", rules[:1]) == [("a", None), ("<t>b", L)]

    def test_overlapping_parts_go_to_the_first_rule(self):
        rules = [{"tag": "t", "type": 1}, {"tag": "u", "type": 0}, {"pattern": "x.*z", "type": 2}]
        assert parts("x<t>x<u>y</t>z</u>", rules) == [("x", N), ("<t>x<u>y</t>", L), ("z</u>", G)]

    @pytest.mark.parametrize(
        ("inner", "kind"),
        [
            ("pickup apple", L),
            ("  'Put in' fridge", L),
            ("PICK UP", L),
            ("put", L),
            ("putting", N),
            ("put_in", N),
            ("I put", N),
            ("", N),
            ("«", N),
        ],
    )
    def test_verbs(self, inner, kind):
        rules = [{"tag": "t", "verbs": ["pickup", "pick up", "put"], "type": 1}, {"type": 2}]
        assert parts(f"<t>{inner}</t>", rules) == [(f"<t>{inner}</t>", kind)]

    def test_tool_calls_within_text(self):
        text = 'a<tool_call>\n{"name": "go", "arguments": {}}\n</tool_call><tool_call>{"name": "look"}</tool_call>'
        pieces = parts(text, [{"tag": "tool_call", "tool": "go", "type": 1}, {"type": 2}])
        assert [kind for _, kind in pieces] == [N, L, N] and "go" in pieces[1][0]

    def test_patterns(self):
        rules = [{"pattern": r"(?m)^Act: (?P<span>.*)$", "type": 1}]
        assert parts("Act: go\nAct: stay", rules) == [("Act: ", None), ("go", L), ("\nAct: ", None), ("stay", L)]
        rules = [{"pattern": r"(?m)^Act: (?P<span>.*)$", "verbs": "go", "type": 1}, {"pattern": "x*", "type": 0}]
        assert parts("Act: go\nAct: stay", rules) == [("Act: ", None), ("go", L), ("\nAct: stay", None)]

    def test_media(self):
        assert parts("<image>a<video><image>", [{"media": ["image"], "type": 1}]) == [
            ("<image>", L),
            ("a<video>", None),
            ("<image>", L),
        ]

    def test_a_pattern_that_takes_for_ever(self):
        start = time.perf_counter()
        with pytest.raises(PatternTimeout, match="rule 'slow': pattern .* 1 s on a message of 61 characters") as error:
            label([("user", "a"), ("user", "a" * 60 + "!")], [{"name": "slow", "pattern": "(a|aa)+$", "type": 0}])
        assert error.value.index == 1
        assert time.perf_counter() - start < 10

    @given(
        st.lists(
            st.sampled_from(["<t>", "</t>", "a", "b", "<u>", "冰", "👩‍👧", "<image>", "\u202e"]), max_size=20
        ).map("".join),
        st.permutations(
            [
                {"tag": "t", "type": 1},
                {"pattern": "[ab]+", "type": 0},
                {"tag": "u", "type": 2},
                {"media": "image", "type": 2},
            ]
        ),
        st.sampled_from([None, 0, 1, 2]),
        st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0, 1, 2])), max_size=3),
    )
    def test_each_character_goes_to_the_first_that_wants_it(self, text, rules, base, cuts):
        """An independent count, character by character."""
        from hsa_factory.labeling.matching import find_parts

        spans, position = [], 0
        for length, kind in cuts:
            if length and position + length <= len(text):
                spans.append((position, position + length, kind))
            position += length
        rules = RuleSet.parse(rules)
        expected = [None] * len(text)
        claims = [[span] for span in spans]
        claims += [[(0, len(text), base)]] if base is not None else []
        claims += [[(start, end, int(rule.type)) for start, end in find_parts(rule, text)] for rule in rules]
        for claim in claims:
            for start, end, kind in claim:
                for place in range(start, end):
                    expected[place] = kind if expected[place] is None else expected[place]
        (row,) = label([Message("user", text, base, tuple(spans))], rules)
        assert [kind for length, kind in row for _ in range(length)] == expected


class TestPresets:
    def test_embodied_reasoner(self):
        messages = [
            ("system", "You are a robot."),
            ("user", "<image>Task: grab <DecisionMaking>Your Action</DecisionMaking>"),
            ("assistant", "I see it. <DecisionMaking>pickup apple</DecisionMaking>"),
            ("user", "<|feedback|>Action: pickup apple is illegal"),
            ("assistant", "Nearer. <DecisionMaking>navigate to table</DecisionMaking>"),
            ("user", "<image>After executing"),
            ("assistant", "<DecisionMaking>put in fridge</DecisionMaking>"),
            ("assistant", "<DecisionMaking>end</DecisionMaking>"),
        ]
        rows = label(messages, "embodied-reasoner")
        assert [row[0] for row in rows[:2]] == [(16, G), (62, G)]
        assert rows[2] == [(10, N), (45, L)]
        assert [row[0][1] for row in rows[3:]] == [N, N, N, L, N]

    @pytest.mark.skipif(not (SHARED / "data" / "embodied").is_dir(), reason="../shared is absent")
    def test_embodied_reasoner_gives_the_types_that_real_trajectories_have(self):
        for sample in json.loads((SHARED / "data" / "embodied" / "embodied.json").read_text("utf-8")):
            given = [SemanticType.parse(message["semantic_type"]) for message in sample["messages"]]
            messages = [(message["role"], message["content"]) for message in sample["messages"]]
            assert types(messages, "embodied-reasoner") == given

    def test_react(self):
        text = "Thought: so\nAction: search\nAction Input: x\nObservation: y\nThought: I know\nFinal Answer: z\nand"
        assert [kind for _, kind in parts(text, "react")] == [N, L, N, L]
        assert parts(text, "react")[1][0] == "Action: search\nAction Input: x\n"
        assert parts(text, "react")[-1][0] == "Final Answer: z\nand"
        talk = [("user", "q"), ("assistant", "Thought: a"), ("user", "Observation: b"), ("user", "And c?")]
        assert types(talk, "react") == [G, N, N, N]

    def test_think_tags(self):
        assert parts("<think>a</think>\n\nb", "think-tags") == [("<think>a</think>", N), ("\n\nb", L)]
        assert parts("a</think>b", "think-tags") == [("a</think>", N), ("b", L)]
        assert parts("<think>a", "think-tags") == [("<think>a", N)]
        assert types([("user", "<think>"), ("system", "s"), ("assistant", "b")], "think-tags") == [G, G, L]

    def test_tool_calls(self):
        text = 'Look.<tool_call>{"name": "go"}</tool_call>'
        assert types([("function", "{}"), ("observation", "x"), ("user", "y"), ("assistant", text)], "tool-calls") == [
            L,
            N,
            G,
            L,
        ]
        assert [kind for _, kind in parts("<think>a</think>" + text, "tool-calls")] == [N, L]
