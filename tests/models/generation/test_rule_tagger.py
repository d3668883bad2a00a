"""Types of generated tokens by rules: the same as those of training data, as soon as the text allows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsa_factory import HSAConfig, enable_hsa, tiny
from hsa_factory.labeling.matching import Message, label_messages
from hsa_factory.labeling.rule_set import RuleSet
from hsa_factory.models import HSACache
from hsa_factory.models.cache.tagger import ConstantTagger
from hsa_factory.models.generation.rule_tagger import RuleTagger, make_tagger
from hsa_factory.typed.text import TypedText, token_types


RULES = [
    {"tag": "think", "type": "NOISE"},
    {"tag": "DecisionMaking", "verbs": ["pick up", "open"], "type": "LANDMARK"},
    {"role": "assistant", "contains": ["task done"], "type": "GLOBAL"},
]
TEXT = (
    "Well <think>I go to the <b>table</b>, ünïcödé 日本 🍎, a < b</think> so <DecisionMaking>pick up the apple"
    "</DecisionMaking> and then <DecisionMaking>move on</DecisionMaking> and so on"
)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.build_tokenizer([TEXT] * 3)


def write(tagger, ids, size=1):
    """Show tokens to a tagger; return their types at the end, those at first, and what was unsettled at each step."""
    types, first, unsettled = [], [], []
    for start in range(0, len(ids), size):
        new = tagger.tag(torch.tensor([ids[start : start + size]]))[0].tolist()
        for row, begin, stop, kind in tagger.settled():
            assert row == 0
            types[begin:stop] = [kind] * (stop - begin)
        types += new
        first += new
        unsettled.append((tagger.unsettled() or [len(types)])[0])
    return types[: len(ids)], first, unsettled


def as_trained(tokenizer, text, rules, base):
    """Type a finished message as training data are typed."""
    encoding = tokenizer(text, return_offsets_mapping=True)
    typing = label_messages([Message("assistant", text)], RuleSet.parse(rules))[0]
    base = base if typing.semantic_type is None else typing.semantic_type
    types = bytearray([base]) * len(text)
    for start, end, kind in typing.spans:
        types[start:end] = bytes([kind]) * (end - start)
    typed = TypedText(text, base, typing.spans)
    return encoding["input_ids"], list(token_types(typed, encoding["offset_mapping"], len(encoding["input_ids"])))


class TestAgreementWithTraining:
    @pytest.mark.parametrize("text", [TEXT, TEXT + ", task done", "<think>never closed <DecisionMaking>open it", ""])
    @pytest.mark.parametrize("size", [1, 5])
    def test_a_whole_message(self, tokenizer, text, size):
        ids, expected = as_trained(tokenizer, text, RULES, 1)
        tagger = make_tagger(HSAConfig(labels=RULES, generated_type="LANDMARK"), tokenizer)
        types, _, unsettled = write(tagger, [*ids, tokenizer.eos_token_id], size)
        assert types[: len(ids)] == expected
        assert unsettled[-1] == len(ids) + 1

    @settings(deadline=None, max_examples=60)
    @given(
        st.lists(st.sampled_from(["<a>", "</a>", "<b>", "</b>", "<a x=1>", "<", ">", "go ", "open ", "é", "🍎", " "]))
    )
    def test_any_text(self, tokenizer, pieces):
        rules = [{"tag": "b", "verbs": ["open"], "type": 1}, {"tag": "a", "type": 2}]
        ids, expected = as_trained(tokenizer, "".join(pieces), rules, 0)
        types, _, unsettled = write(make_tagger(HSAConfig(labels=rules), tokenizer), [*ids, tokenizer.eos_token_id])
        assert types[: len(ids)] == expected
        # nothing that was called settled has changed since
        tagger = make_tagger(HSAConfig(labels=rules), tokenizer)
        seen = []
        for place, token_id in enumerate([*ids, tokenizer.eos_token_id]):
            tagger.tag(torch.tensor([[token_id]]))
            seen.append(([*tagger.rows[0].types], unsettled[place]))
        for kinds, settled in seen:
            assert kinds[:settled] == tagger.rows[0].types[:settled]


class TestInTime:
    def test_between_tags_the_type_is_known_when_the_token_is_fed(self, tokenizer):
        rules = [{"tag": "think", "type": "NOISE"}]
        ids = tokenizer("<think>I go to the table</think>I pick up")["input_ids"]
        _, first, unsettled = write(make_tagger(HSAConfig(labels=rules), tokenizer), ids)
        inside = ids.index(tokenizer.convert_tokens_to_ids("</think>"))
        assert first == [2] * (inside + 1) + [0] * (len(ids) - inside - 1)
        assert unsettled == list(range(1, len(ids) + 1))

    def test_a_tag_of_several_tokens(self, tokenizer):
        rules = [{"tag": "Plan", "type": "NOISE"}]
        ids = tokenizer("so <Plan>I go")["input_ids"]
        types, first, unsettled = write(make_tagger(HSAConfig(labels=rules), tokenizer), ids)
        opening = next(place for place, kind in enumerate(types) if kind == 2)
        assert first[opening] == 0 and unsettled[opening] <= opening  # settled when the tag is complete
        assert types[opening:] == [2] * (len(ids) - opening) and unsettled[-1] == len(ids)

    def test_an_element_judged_by_its_text_waits_for_its_end(self, tokenizer):
        rules = [{"tag": "DecisionMaking", "verbs": ["open"], "type": "LANDMARK"}]
        text = "Now <DecisionMaking>open the box</DecisionMaking> ok"
        ids = tokenizer(text)["input_ids"]
        types, _, unsettled = write(make_tagger(HSAConfig(labels=rules, generated_type="NOISE"), tokenizer), ids)
        element = [place for place, kind in enumerate(types) if kind == 1]
        assert element and all(unsettled[place] <= element[0] for place in element[:-1])
        assert unsettled[element[-1]] == element[-1] + 1

    def test_a_rule_on_the_whole_message_waits_for_the_message(self, tokenizer):
        ids = tokenizer(TEXT)["input_ids"]
        _, _, unsettled = write(make_tagger(HSAConfig(labels=RULES), tokenizer), ids)
        assert set(unsettled) == {0}


class TestChoice:
    def test_without_rules(self):
        assert make_tagger(HSAConfig()).semantic_type == 0
        assert make_tagger(HSAConfig(generated_type="NOISE", default_type=1)).semantic_type == 2
        assert make_tagger(HSAConfig(labels=[{"role": "user", "type": 0}], default_type=1)).semantic_type == 1

    def test_by_role(self):
        tagger = make_tagger(HSAConfig(labels=[{"role": "assistant", "type": "NOISE"}, {"tag": "a", "type": 0}]))
        assert isinstance(tagger, ConstantTagger) and tagger.semantic_type == 2

    def test_by_turn(self):
        config = HSAConfig(labels=[{"role": "assistant", "turn": "first", "type": "LANDMARK"}], generated_type="NOISE")
        with pytest.raises(ValueError, match="counts turns, which takes the roles"):
            make_tagger(config)
        assert make_tagger(config, roles=["system", "user"]).semantic_type == 1
        assert make_tagger(config, roles=["user", "assistant", "user"]).semantic_type == 2

    def test_a_text_rule_without_tokenizer(self):
        with pytest.raises(ValueError, match=r"'tag think' looks at the text .* generate\(…, tokenizer=tokenizer\)"):
            make_tagger(HSAConfig(labels=RULES))

    def test_rows_are_copied(self, tokenizer):
        tagger = make_tagger(HSAConfig(labels=RULES[:1]), tokenizer)
        ids = tokenizer("<think>")["input_ids"]
        tagger.tag(torch.tensor([ids, tokenizer("a")["input_ids"][:1] * len(ids)]))
        tagger.change(lambda tensor: tensor[[1, 0, 0]])
        assert isinstance(tagger, RuleTagger)
        assert tagger.tag(torch.tensor([tokenizer("b")["input_ids"]] * 3))[:, -1].tolist() == [0, 2, 2]
        assert len({id(row.ids) for row in tagger.rows}) == 3


class TestInGeneration:
    """A model is made to write a given text, and its logits must be those of one forward with the trained types."""

    @pytest.mark.parametrize("rules", [RULES[:1], RULES[:2], RULES])
    def test_forced_text(self, tokenizer, rules):
        config = HSAConfig(noise_window=3, labels=rules, generated_type="LANDMARK")
        model = enable_hsa(tiny.build_model("llama", tokenizer, num_hidden_layers=1), config)
        written, expected = as_trained(tokenizer, TEXT + " " + TEXT, rules, 1)
        prompt = torch.tensor([tokenizer("Go and pick up the apple")["input_ids"]])
        kinds, end = torch.zeros_like(prompt), prompt.shape[1]
        cache = HSACache(config, max_waiting=4)

        def force(batch, ids):
            return [written[len(ids) - end]]

        output = model.generate(
            prompt,
            semantic_ids=kinds,
            past_key_values=cache,
            tokenizer=tokenizer,
            prefix_allowed_tokens_fn=force,
            max_new_tokens=len(written),
            eos_token_id=None,
            do_sample=False,
        )
        assert output[0, end:].tolist() == written
        read = torch.cat([kinds, torch.tensor([expected])], dim=1)
        if rules is not RULES:  # which wait for the message's end
            assert cache.semantic_ids[0].tolist() == read[0, :-1].tolist()
            assert cache.report().kept_tokens < len(read[0]) - 20
        with torch.no_grad():
            whole = model(input_ids=output, semantic_ids=read, use_cache=False).logits[:, -1]
            last = model(input_ids=output[:, -1:], semantic_ids=read, past_key_values=cache).logits[:, -1]
        torch.testing.assert_close(last, whole, atol=2e-5, rtol=1e-4)
        if rules is RULES:
            assert cache.semantic_ids[0].tolist() == read[0].tolist()

    def test_the_tokenizer_is_asked_for(self, tokenizer):
        model = enable_hsa(tiny.build_model("llama", tokenizer), HSAConfig(labels=RULES))
        with pytest.raises(ValueError, match="tokenizer=tokenizer"):
            model.generate(torch.ones(1, 4, dtype=torch.long), max_new_tokens=3)
