"""What a conversation that is to be continued is typed by: given types, rules, roles."""

import pytest

from hsa_factory import SemanticType
from hsa_factory.labeling.conversation import type_conversation
from hsa_factory.labeling.matching import Message
from hsa_factory.labeling.rule_set import RuleSet


G, L, N = SemanticType.GLOBAL, SemanticType.LANDMARK, SemanticType.NOISE
ROLES = ("system", "user", "assistant", "observation", "function", "user", "assistant")


def types(messages, rules=None, default=N, generated=None):
    rules = RuleSet.parse(rules) if rules else None
    return [text.semantic_type for text in type_conversation(messages, rules, default, generated)]


def conversation(*roles, **given):
    return [Message(role, f"text {number}", given.get(f"m{number}")) for number, role in enumerate(roles)]


def test_system_and_first_user_message_are_global():
    assert types(conversation(*ROLES)) == [G, G, N, N, N, N, N]


def test_what_the_model_wrote_has_the_generated_type():
    assert types(conversation(*ROLES), generated=L) == [G, G, L, N, L, N, L]


def test_the_first_user_message_need_not_be_first():
    assert types(conversation("assistant", "observation", "user", "user")) == [N, N, G, N]


def test_without_a_user_message_nothing_is_assumed():
    assert types(conversation("observation")) == [N]
    assert types([]) == []


@pytest.mark.parametrize("given", [G, L, N])
def test_given_types_win_over_roles_and_rules(given):
    messages = conversation(*ROLES, m0=int(given), m1=int(given), m2=int(given))
    assert types(messages, [{"role": ["system", "user", "assistant"], "type": "GLOBAL"}], L)[:3] == [given] * 3


def test_rules_win_over_roles():
    rules = [{"role": "system", "type": "LANDMARK"}, {"role": "user", "turn": "first", "type": "NOISE"}]
    assert types(conversation(*ROLES), rules, L, G) == [L, N, G, L, G, L, G]


def test_parts_keep_the_roles_type_around_them():
    rules = RuleSet.parse([{"tag": "think", "type": "NOISE"}])
    messages = [Message("user", "a <think>b</think> c"), Message("assistant", "<think>d</think>")]
    first, second = type_conversation(messages, rules, L, G)
    assert (first.semantic_type, first.spans) == (G, ((0, 2, G), (2, 18, N), (18, 20, G)))
    assert (second.semantic_type, second.spans) == (N, ((0, 16, N),))
