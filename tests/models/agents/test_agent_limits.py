"""Odd tokenizers and models, failures half-way, and what is refused: by name, and nothing is half-done."""

import random
from types import SimpleNamespace

import pytest
import torch

from hsa_factory import HSAConfig, enable_hsa, tiny
from hsa_factory.models import AgentBatch


CONFIG = HSAConfig(noise_window=3, noise_decay=0.1, generated_type="NOISE")
FAMILIES = ("qwen3", "llama", "gemma3_text", "gpt_oss")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.build_tokenizer(["go to the kitchen, open the <door>, look around"] * 3, 300)


@pytest.fixture(scope="module")
def models():
    return {family: tiny.build_model(family).eval() for family in FAMILIES}


@pytest.fixture
def make(models, tokenizer):
    def build(config=CONFIG, family="qwen3", tokenizer=tokenizer, **options):
        options = {"rows": 2, "max_new_tokens": 4, "max_waiting": 2, "stop": list(range(50, 90))} | options
        return AgentBatch(enable_hsa(models[family], config), tokenizer, **options)

    return build


def alone(agents, history, stops=range(50, 90)):
    """What `model.generate` writes for a history."""
    ids = torch.tensor([history["input_ids"]])
    output = agents.model.generate(
        ids,
        semantic_ids=torch.tensor([history["semantic_ids"]]),
        attention_mask=torch.ones_like(ids),
        max_new_tokens=agents.max_new_tokens,
        do_sample=False,
        eos_token_id=list(stops),
        pad_token_id=0,
        tokenizer=agents.tokenizer,
    )
    return output[0, ids.shape[1] :].tolist()


def poison(cache):
    """Fill the room behind the keys that are held, where those that are gone have lain, with NaN."""
    for layer in cache.layers:
        for buffer in layer._buffers:
            buffer[:, :, layer._length :] = float("nan")


@pytest.mark.parametrize("family", FAMILIES)
def test_episodes_of_several_families_are_those_of_generate(make, family):
    """Rules that type parts of replies, sliding layers, sinks; keys that are gone are NaN where they lay."""
    rules = [{"tag": "door", "type": "LANDMARK"}, {"role": "user", "type": "NOISE"}]
    agents, chance = make(HSAConfig(rules=rules, noise_window=3, noise_decay=0), family, rows=3), random.Random(3)
    agents.append(["go to <door>", "look", "open the kitchen"], "GLOBAL")
    for turn in range(4):
        before = {row: agents.history(row) for row in agents.live if agents._rows[row].has_news}
        replies = agents.act()
        for row, history in before.items():
            expected = alone(agents, history)
            assert list(replies[row].ids) == expected[: len(replies[row].ids)]
            assert len(expected) == len(replies[row].ids) + replies[row].is_complete
        poison(agents._shared.cache)
        news = {
            row: " ".join(chance.choices("go look open door".split(), k=chance.randint(1, 9))) for row in agents.live
        }
        agents.append({row: text for row, text in news.items() if (row + turn) % 3}, None)


@pytest.mark.parametrize(
    ("eos", "pad"), [("<|im_end|>", "<|im_end|>"), ("<|im_end|>", None), (None, None), (None, "zero")]
)
def test_odd_end_and_padding_tokens(make, tokenizer, eos, pad):
    """Padding is told by the mask: token 0 as padding, the end token as padding, or none at all."""
    find = tokenizer.convert_tokens_to_ids
    odd = SimpleNamespace(
        eos_token_id=find(eos) if eos else None,
        pad_token_id=0 if pad == "zero" else find(pad) if pad else None,
        decode=tokenizer.decode,
        is_fast=True,
    )
    rules = [{"role": "assistant", "pattern": "(?s).*", "type": "LANDMARK"}]
    agents = make(HSAConfig(rules=rules, noise_window=3, default_type="NOISE"), tokenizer=odd, header=[7])
    agents.append([[0, 0, 9, 0], [5]], "GLOBAL")
    kinds = []
    for _ in range(2):
        starts = [len(agents.history(row)["input_ids"]) for row in range(2)]
        for row, reply in enumerate(agents.act()):
            types = agents.history(row)["semantic_ids"][starts[row] :]
            if "\ufffd" not in reply:  # half a character is no text
                kinds.append((bool(reply), set(types)))
        agents.append([[0], [9, 0]], "NOISE")
    assert kinds and all(found == ({1} if has_text else {2}) for has_text, found in kinds), (
        "the end of a reply is seen"
    )


def test_a_failed_act_changes_nothing(make, monkeypatch):
    def play(fails):
        agents = make(temperature=1.0, stop=[299])
        replies = []
        for turn in range(3):
            agents.append(["go", "look around"], "NOISE")
            if turn == 1 and fails:
                before, forward = [agents.history(row) for row in range(2)], agents._shared._forward
                calls = []

                def fail(ids, reads):
                    calls.append(0)
                    if len(calls) == 3:
                        raise torch.OutOfMemoryError("CUDA out of memory")
                    return forward(ids, reads)

                with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
                    patch.setattr(agents._shared, "_forward", fail)
                    agents.act()
                assert [agents.history(row) for row in range(2)] == before and agents.report().held == 0
            replies.append([reply.ids for reply in agents.act()])
        return replies

    assert play(fails=True) == play(fails=False)


def test_a_failure_within_the_model_and_its_cache(make, monkeypatch):
    agents = make()
    agents.append(["go", "look around"], "NOISE")
    agents.act()
    agents.append(["go", None], "NOISE")
    expected = alone(agents, agents.history(0))
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no memory"):
        patch.setattr(
            agents._shared.cache.layers[1], "commit", lambda: (_ for _ in ()).throw(RuntimeError("no memory"))
        )
        agents.act()
    assert list(agents.act()[0].ids) == expected[: len(expected) - (expected[-1] in range(50, 90))]


def test_rows_that_get_nothing_and_finished_ones(make):
    agents = make(rows=3)
    agents.append([None, "go", None])
    assert [reply is not None for reply in agents.act()] == [False, True, False]
    with pytest.raises(ValueError, match="there is no row 9"):
        agents.finish([1, 9])
    assert agents.live == [0, 1, 2], "all rows, or none"
    agents.finish(1)
    with pytest.raises(ValueError, match="row 1 is finished"):
        agents.append([None, "go", "look"])
    assert not agents.history(2)["input_ids"]
    agents.append([None, None, "look"])
    assert agents.act()[2] is not None and agents.report().rows[0].tokens == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda agents: agents.append({1: [3, 10**6]}), r"row 1: token 1 is 1000000, but the model knows"),
        (lambda agents: agents.append({1: "go"}, {4: "NOISE"}), "types: there is no row 4"),
        (lambda agents: agents.append({1: "go"}, {1: torch.tensor([0.5])}), "row 1"),
        (lambda agents: agents.append({1: 3.5}), "row 1: an observation is a text, or token ids"),
        (lambda agents: agents.act({0: "go"}), "row 0: expected a list of texts"),
        (lambda agents: agents.act({0: []}), "row 0: expected a list of texts, one at least"),
        (lambda agents: agents.act({0: ["open the kitchen " * 9]}), "row 0: 'open the kitchen.*max_new_tokens is 4"),
        (lambda agents: agents.act(types={0: "LOUD"}), "row 0: Unknown semantic type 'LOUD'"),
        (lambda agents: agents.act(types={8: "NOISE"}), "types: there is no row 8"),
        (lambda agents: agents.retype(0, 0, 99, "NOISE"), "row 0: 0 to 99 are no places"),
        (lambda agents: agents.retype(0, 0, 1, "LOUD"), "row 0: Unknown semantic type"),
    ],
)
def test_what_does_not_fit_names_the_row(make, call, message):
    agents = make()
    agents.append({0: "go"})
    before = agents.history(0)
    with pytest.raises(ValueError, match=message):
        call(agents)
    assert agents.history(0) == before and not agents.history(1)["input_ids"]
    assert agents.act()[0] is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [("repetition_penalty", 1.05), ("num_beams", 4), ("min_p", 0.1), ("no_repeat_ngram_size", 3), ("suppress_tokens", [5]),
     ("prompt_lookup_num_tokens", 3), ("forced_eos_token_id", 5), ("stop_strings", "x"), ("min_new_tokens", 3)],
)  # fmt: skip
def test_a_generation_configuration_that_would_be_ignored(make, models, monkeypatch, name, value):
    monkeypatch.setattr(models["qwen3"].generation_config, name, value)
    with pytest.raises(ValueError, match=rf"does not apply {name} = .* model.generation_config.*logits_processor"):
        make()


def test_neutral_options_and_those_of_drawing_are_no_mistake(make, models, monkeypatch):
    neutral = {
        "repetition_penalty": 1.0,
        "num_beams": 1,
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
    }
    for name, value in neutral.items():
        monkeypatch.setattr(models["qwen3"].generation_config, name, value)
    assert make().live == [0, 1]


def test_placeholders_of_images_are_refused(tokenizer):
    model = enable_hsa(tiny.build_model("qwen2_5_vl").eval(), HSAConfig())
    agents = AgentBatch(model, tokenizer, rows=2, max_new_tokens=2, stop=5)
    for name in ("image", "video"):
        with pytest.raises(ValueError, match=rf"row 1: token 1 is .* stands for {name} .*model.generate"):
            agents.append({1: [3, getattr(model.config, f"{name}_token_id")]})
    agents.append({1: "go"})
    assert agents.act()[1].ids


def test_sampling_is_the_same_whoever_plays_beside(make):
    def play(names, rows):
        agents, found = make(rows=rows, temperature=1.3, top_p=0.9, stop=[299]), {}
        for row, name in enumerate(names):
            agents.start(row, f"go to {name}", "NOISE", seed=name)
        for _ in range(3):
            for name, reply in zip(names, agents.act()):
                found.setdefault(name, []).append(reply.ids)
            agents.append(dict.fromkeys(range(len(names)), "look around"), "NOISE")
        return found

    whole = play(["kitchen", "door", "a"], 3)
    assert play(["door"], 1)["door"] == whole["door"] and play(["a", "b", "kitchen"], 4)["kitchen"] == whole["kitchen"]
