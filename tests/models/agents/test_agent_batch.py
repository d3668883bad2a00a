"""Many episodes side by side: each row writes what `model.generate` writes for its whole history alone."""

import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsa_factory import HSAConfig, enable_hsa, tiny
from hsa_factory.models import AgentBatch


WORDS = "go take the knife open door look around table chair room kitchen You see a".split()
HEADER, FOOTER = "<|im_start|>assistant\n", "<|im_end|>\n"
CONFIGS = {
    "window": HSAConfig(noise_window=5, generated_type="NOISE"),
    "turns": HSAConfig(noise_turns=1, landmark_turns=2, landmark_window=3, generated_type="LANDMARK"),
    "turns 0": HSAConfig(noise_turns=0, generated_type="NOISE"),
    "dense": HSAConfig(),
    "sliding": HSAConfig(global_window=7),
}
LIMIT = 4


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.build_tokenizer([" ".join(WORDS * 3)], 400)


@pytest.fixture(scope="module")
def models():
    return {family: tiny.build_model(family).eval() for family in ("qwen3", "llama", "qwen2")}


def make(model, tokenizer, config, **options):
    stops = [tokenizer.eos_token_id, *range(100, 170)]
    options = {"max_new_tokens": LIMIT, "header": HEADER, "footer": FOOTER, "stop": stops, "max_waiting": 3} | options
    return AgentBatch(enable_hsa(model, config), tokenizer, **options)


def alone(agents, tokenizer, history, config):
    """What the model writes for a history, alone, its header included."""
    header = tokenizer(HEADER, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([history["input_ids"] + header])
    types = [*history["semantic_ids"], *[int(config.generated)] * len(header)]
    turns = [*history["turn_ids"], *[history["turn_ids"][-1]] * len(header)]
    more = {"turn_ids": torch.tensor([turns])} if config.has_turns else {}
    stops = [tokenizer.eos_token_id, *range(100, 170)]
    options = {"do_sample": False, "eos_token_id": stops, "pad_token_id": 0, "max_new_tokens": LIMIT}
    output = agents.model.generate(ids, semantic_ids=torch.tensor([types]), **options, **more)
    return output[0, ids.shape[1] :].tolist()


@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    family=st.sampled_from(["qwen3", "llama", "qwen2"]),
    name=st.sampled_from(list(CONFIGS)),
    side=st.sampled_from(["left", "right"]),
)
def test_each_row_writes_what_it_would_alone(models, tokenizer, seed, family, name, side):
    """Rows come, go, begin anew and have nothing to read; their types and lengths are any."""
    chance, config, rows = random.Random(seed), CONFIGS[name], 3
    tokenizer.padding_side = side
    agents, checked = make(models[family], tokenizer, config, rows=rows), 0
    for turn in range(5):
        if turn == 2:
            agents.finish(chance.choice(agents.live))
        if turn == 3:
            for row in set(range(rows)) - set(agents.live):
                agents.start(row)
        texts = {row: " ".join(chance.choices(WORDS, k=chance.randint(1, 20))) for row in agents.live}
        texts = {row: text for row, text in texts.items() if chance.random() < 0.8} or texts
        agents.append(texts, {row: chance.choice([0, 1, 2, None]) for row in texts})
        before = {row: agents.history(row) for row in texts}
        replies = agents.act()
        assert [row for row, reply in enumerate(replies) if reply is not None] == sorted(texts)
        for row, history in before.items():
            expected = alone(agents, tokenizer, history, config)
            assert list(replies[row].ids) == (expected[:-1] if replies[row].is_complete else expected)
            checked += 1
    assert checked >= 5


def test_the_history_is_that_of_the_template(models, tokenizer):
    """Header, reply and footer stand as a template writes them, in the reply's turn; a cut-off reply is closed, too."""
    agents = make(
        models["qwen3"], tokenizer, CONFIGS["turns"], rows=2, stop=tokenizer.convert_tokens_to_ids("<|im_end|>")
    )
    texts = ["<|im_start|>user\ngo<|im_end|>\n", "<|im_start|>user\nlook around<|im_end|>\n"]
    agents.append(texts, "GLOBAL")
    replies = agents.act()
    agents.append([texts[1], None], "NOISE")
    for row, text in enumerate(texts):
        history = agents.history(row)
        before, after = f"{text}{HEADER}", FOOTER + (texts[1] if row == 0 else "")
        ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after)]
        assert history["input_ids"] == [*ids[0], *replies[row].ids, *ids[1]]
        assert history["turn_ids"][-1] == (1 if row == 0 else 0)
        assert set(history["semantic_ids"]) == ({0, 1, 2} if row == 0 else {0, 1})


def test_replies_are_typed_by_rules_when_they_end(models, tokenizer):
    """Until then a reply, and its header, stay; afterwards all of it has the message's type, in the cache as well."""
    rules = [{"role": "assistant", "pattern": "(?s).*", "type": "LANDMARK"}, {"role": "assistant", "type": "NOISE"}]
    config = HSAConfig(noise_window=1, noise_decay=0, rules=[{"role": "user", "type": "NOISE"}, *rules])
    agents = make(models["llama"], tokenizer, config, rows=2, max_waiting=1)
    for _ in range(3):
        agents.append(["go to the kitchen", "look"])
        start = [len(agents.history(row)["input_ids"]) for row in range(2)]
        replies = agents.act()
        for row, reply in enumerate(replies):
            kinds = {1} if reply else {2}  # an empty text is matched by no pattern
            assert set(agents.history(row)["semantic_ids"][start[row] :]) == kinds and set(reply.semantic_ids) <= kinds
    held = agents.report().rows[0].visible
    landmarks = agents.history(0)["semantic_ids"].count(1)
    assert landmarks - 3 <= held <= landmarks + 2


def test_rules_that_count_turns_differ_by_row(models, tokenizer):
    rules = [{"role": "assistant", "turn": 0, "type": "GLOBAL"}, {"role": "assistant", "type": "NOISE"}]
    agents = make(models["qwen2"], tokenizer, HSAConfig(rules=rules), rows=2)
    agents.append(["go", None], "NOISE")
    agents.act()
    agents.append(["go", "look"], "NOISE")
    first, second = agents.act()
    assert set(first.semantic_ids) <= {2} and set(second.semantic_ids) <= {0}


def test_finished_rows_leave_and_padding_goes(models, tokenizer):
    agents = make(models["qwen3"], tokenizer, CONFIGS["window"], rows=3)
    for _ in range(4):
        agents.append(["go " * 20, "look", "open the door"], "NOISE")
        agents.act()
    report = agents.report()
    assert report.waiting == report.held - report.visible == sum(row.waiting for row in report.rows)
    assert report.columns <= report.peak_held + 30 and report.mean_held <= report.peak_held
    agents.finish([0, 2])
    agents.append({1: "look"})
    agents.act()
    assert agents.live == [1] and agents.report().live == 1
    assert agents._shared.cache.rows == 1 and agents.report().rows[0].replies == 4


def test_sampling_does_not_depend_on_neighbours(models, tokenizer):
    def play(rows):
        agents = make(models["qwen3"], tokenizer, CONFIGS["window"], rows=rows, temperature=1.5, top_p=0.95)
        for row in range(rows):
            agents.start(row, "go to the kitchen", seed=f"game {row}")
        return [reply.ids for reply in agents.act()]

    assert play(3) == play(3) and play(3)[:1] == play(1) and len(set(play(3))) > 1


def test_choices_and_processors(models, tokenizer):
    agents = make(models["qwen3"], tokenizer, HSAConfig(), rows=2, max_new_tokens=8)
    agents.append(["go", "look"])
    actions = agents.act(choices=[["take the knife", "open the door"], None])
    assert actions[0] in ("take the knife", "open the door") and actions[0].is_complete

    def never(ids, scores):
        scores[:, banned] = float("-inf")
        return scores

    banned = list(actions[1].ids)[:1] or [5]
    agents = make(models["qwen3"], tokenizer, HSAConfig(), rows=1, logits_processor=[never])
    agents.append(["look"])
    assert banned[0] not in agents.act()[0].ids


def test_a_reply_of_a_given_type(models, tokenizer):
    agents = make(models["qwen3"], tokenizer, HSAConfig(), rows=2)
    agents.append(["go", "look"])
    first, second = agents.act(types=["LANDMARK", 2])
    assert set(first.semantic_ids) <= {1} and set(second.semantic_ids) <= {2}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda agents: agents.act(), "no row has anything to answer"),
        (lambda agents: agents.append(["go"]), "one value for each of the 2 rows"),
        (lambda agents: agents.append({5: "go"}), "there is no row 5"),
        (lambda agents: agents.append({1: ""}), "row 1: the observation is an empty text"),
        (lambda agents: agents.append({1: [3, 4]}, {1: [0]}), "row 1: the observation has 2 tokens, but got 1 types"),
        (lambda agents: agents.append({1: "go"}, {1: "LOUD"}), "row 1: Unknown semantic type 'LOUD'"),
        (lambda agents: (agents.finish(1), agents.append({1: "go"})), r"row 1 is finished. start\(1\)"),
        (lambda agents: (agents.append({1: [3] * 10**5}), agents.act()), "row 1: its history of 100000 tokens"),
        (lambda agents: agents.finish(9), "there is no row 9"),
    ],
)
def test_mistakes_are_named_by_row(models, tokenizer, call, message):
    with pytest.raises(ValueError, match=message):
        call(make(models["qwen3"], tokenizer, HSAConfig(), rows=2))


def test_models_that_cannot(tokenizer):
    with pytest.raises(ValueError, match="has no HSA: call enable_hsa"):
        AgentBatch(tiny.build_model("qwen3"), tokenizer)
    with pytest.raises(ValueError, match="layers without softmax attention"):
        AgentBatch(enable_hsa(tiny.build_model("qwen3_5_text"), HSAConfig()), tokenizer)
    nothing = SimpleNamespace(eos_token_id=None, pad_token_id=None)
    model = enable_hsa(tiny.build_model("qwen3"), HSAConfig())
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="nothing ends a reply"):
        AgentBatch(model, nothing)
