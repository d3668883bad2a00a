"""Which reply a marker judges, wherever it stands, and which one corrects it."""

import pytest

from hsa_factory.pairs import PairOptions
from hsa_factory.pairs.feedback_turns import LeftOut, find_feedback


F = "<|feedback|>"
ROLES = {"s": "system", "u": "user", "a": "assistant", "f": "function", "o": "observation"}


def found(*messages, **options):
    """Return (message of the marker, mistake, correction or why there is none) for messages such as ``a: text``."""
    roles, texts = zip(*((ROLES[message[0]], message[3:].replace("F", F)) for message in messages))

    def text(attempt):
        return attempt and texts[attempt.message][attempt.start : attempt.stop]

    turns = find_feedback(roles, texts, PairOptions(**options))
    return [(turn.message, text(turn.mistake), turn.left_out or text(turn.correction)) for turn in turns]


class TestWhereTheMarkerStands:
    @pytest.mark.parametrize("role", ["u", "o"])
    @pytest.mark.parametrize("text", ["F no", "no F", "F", "n F o F"])
    def test_in_the_answer(self, role, text):
        assert found("u: go", "a: left", f"{role}: {text}", "a: right") == [(2, "left", "right")]

    def test_within_a_reply(self):
        assert found("u: go", "a: left \nF\n no, right") == [(1, "left", "no, right")]

    def test_at_the_start_of_the_next_reply(self):
        assert found("u: go", "a: left", "o: wall", "a: F right") == [(3, "left", "right")]

    def test_said_twice_for_one_mistake(self):
        assert found("u: go", "a: left", "u: F no", "a: F right") == [(2, "left", "right")]
        assert found("u: go", "a: leftFF right") == [(1, "left", "right")]

    def test_some_replies_later(self):
        """Of parallel calls any reply may hold it."""
        assert found("u: go", "f: calls", "o: fine", "o: F bad", "a: right") == [(3, "calls", "right")]

    @pytest.mark.parametrize("first", ["s: F rules", "u: F task", "a: F so"])
    def test_before_any_reply(self, first):
        assert found(first, "a: left") == [(0, None, LeftOut.NO_MISTAKE)]

    def test_at_the_end(self):
        assert found("u: go", "a: left", "u: F no") == [(2, "left", LeftOut.NO_CORRECTION)]
        assert found("u: go", "a: left F") == [(1, "left", "")]
        assert found("u: go", "a: left F", "u: well", "a: right") == [(1, "left", "")]

    def test_of_another_role(self):
        assert found("u: go", "a: leftF right", scope="user") == []
        assert found("u: go", "a: left", "u: F", "a: right", scope="assistant") == []


class TestSeveral:
    CHAIN = ("u: go", "a: A", "u: F", "a: B", "u: F", "a: C", "u: on", "a: D", "u: F", "a: E")

    def test_a_correction_that_failed(self):
        assert found(*self.CHAIN) == [(2, "A", "C"), (4, "B", "C"), (8, "D", "E")]
        assert found(*self.CHAIN, failed="keep") == [(2, "A", "B"), (4, "B", "C"), (8, "D", "E")]
        assert found(*self.CHAIN, failed="drop") == [(2, "A", LeftOut.FAILED), (4, "B", "C"), (8, "D", "E")]

    def test_one_of_them(self):
        assert found(*self.CHAIN, occurrence="first") == [(2, "A", "C")]
        assert found(*self.CHAIN, occurrence="last") == [(8, "D", "E")]

    def test_in_one_reply(self):
        assert found("u: go", "a: AFBFC") == [(1, "A", "C"), (1, "B", "C")]
        assert found("u: go", "a: AFB", "u: F", "a: C") == [(1, "A", "C"), (2, "B", "C")]

    def test_that_ends_in_failure(self):
        expected = [(2, "A", LeftOut.NO_GOOD_CORRECTION), (4, "B", LeftOut.NO_CORRECTION)]
        assert found("u: go", "a: A", "u: F", "a: B", "u: F") == expected


@pytest.mark.parametrize(
    "options", [{"token": "a b"}, {"occurrence": "second"}, {"scope": "robot"}, {"failed": "perhaps"}]
)
def test_options(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"PairOptions.{name} = "):
        PairOptions(**options)
