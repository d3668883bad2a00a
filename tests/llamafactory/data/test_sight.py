"""Replies that cannot see what they answer: counted pair by pair by the rules' own words, and on real trajectories."""

import json
import random

import numpy as np
import pytest
import torch

from hsa_factory import FeedbackConfig, HSAConfig, tiny
from hsa_factory.attention.layer_rules import LayerRules
from hsa_factory.attention.plan import AttentionPlan
from hsa_factory.inspection.sight import describe_sight
from hsa_factory.llamafactory.data.report import DataReport, DatasetAccount, serialize_accounts
from hsa_factory.llamafactory.data.sight import SeenTokens, Turns, last_seen
from hsa_factory.llamafactory.data.truncation import kept_lengths


MEDIA, MARKER, OPENING = 7, 8, [1, 2]


def sees(config, types, query, key, is_same_turn):
    """Whether a token sees an earlier one of its turn or of another sample, from the definition."""
    window, turns = config.windows[types[key]], config.turns[types[key]]
    is_seen = (window is None and turns is None) or (window is not None and query - key <= window)
    is_seen |= turns is not None and is_same_turn
    return (types[query], types[key]) not in config.hide and is_seen


def expected_counts(config, ids, types, samples):
    """Count as the account's description says, token by token."""
    counts = dict.fromkeys(("replies", "blind", "hidden"), 0)
    for start, lengths in samples:
        for prompt, response in zip(lengths[::2], lengths[1::2]):
            first, answered = start + prompt, list(range(start, start + prompt))
            start = first + response
            if prompt > 2 and ids[first - 2 : first] == OPENING:
                del answered[-2:]
            counts["replies"] += 1
            ends = {"start": first, "end": start - 1}
            is_blind = False
            for name, wanted in (("message", None), ("media", MEDIA), ("marker", MARKER)):
                keys = [key for key in answered if wanted in (None, ids[key])]
                counts[name] = counts.get(name, 0) + bool(keys)
                for end, query in ends.items():
                    seen = sum(sees(config, types, query, key, is_same_turn=True) for key in keys)
                    for what, holds in (("unseen", keys and not seen), ("partly_seen", 0 < seen < len(keys))):
                        counts[f"{name}_{what}_at_{end}"] = counts.get(f"{name}_{what}_at_{end}", 0) + bool(holds)
                    is_blind |= end == "start" and bool(keys) and not seen
            counts["blind"] += is_blind
            counts["hidden"] += any(
                (types[query], types[key]) in config.hide for query in ends.values() for key in answered
            )
    return counts


@pytest.mark.parametrize("seed", range(40))
def test_counts_are_those_of_the_definition(seed):
    rng = random.Random(seed)
    hide = [[query, key] for query in range(3) for key in range(3) if rng.random() < (0.2 if seed % 2 else 0)]
    windows = {f"{kind}_window": rng.choice([None, 0, 1, 3, 10, 30]) for kind in ("global", "landmark", "noise")}
    if seed % 4 == 3:
        windows |= {f"{kind}_turns": rng.choice([None, 0, 1, 3]) for kind in ("global", "landmark", "noise")}
    config = HSAConfig(hide=hide, **windows)
    ids, samples, turns = [], [], Turns()
    for _ in range(rng.randint(1, 6)):
        ids += [0] * rng.randint(0, 2)  # what stands in front of a sample
        lengths = [rng.randint(1, 9) for _ in range(2 * rng.randint(1, 4))]
        samples.append((len(ids), lengths))
        turns.add(*samples[-1])
        for place, length in enumerate(lengths):
            tokens = [rng.choice([3, 4, MEDIA, MARKER]) if rng.random() < 0.3 else 5 for _ in range(length)]
            if place % 2 == 0 and length > 2 and rng.random() < 0.8:
                tokens[-2:] = OPENING
            ids += tokens
    types = [rng.randrange(3) for _ in ids]
    types = [kind for kind, _ in zip(np.repeat(types, 3), ids)] if seed % 3 else types

    arrays = np.array(ids, np.int32), np.array(types, np.int8)
    exchanges = turns.exchanges(arrays[0], OPENING)
    counts, needed = SeenTokens(*arrays, config, {MEDIA}, MARKER).count(exchanges)
    assert dict(counts) == expected_counts(config, ids, types, samples)

    shown = HSAConfig(hide=hide, **{**windows, **{f"{kind.lower()}_window": size for kind, size in needed.items()}})
    counts, still_needed = SeenTokens(*arrays, shown, {MEDIA}, MARKER).count(exchanges)
    assert not still_needed
    if not hide:
        assert counts["message_partly_seen_at_end"] == counts["blind"] == 0
        for kind, size in needed.items():
            less = HSAConfig(**{**windows, f"{kind.lower()}_window": size - 1})
            assert SeenTokens(*arrays, less, {MEDIA}, MARKER).count(exchanges)[1][kind] == size


@pytest.mark.parametrize("seed", range(20))
def test_keys_are_seen_as_long_as_by_the_attention(seed):
    rng = random.Random(seed)
    limits = {f"{kind}_turns": rng.choice([None, 0, 1, 3, 10**12]) for kind in ("global", "landmark", "noise")}
    limits |= {f"{kind}_window": rng.choice([None, 0, 4, 20]) for kind in ("global", "landmark", "noise")}
    config, turns, places, documents, numbers = HSAConfig(**limits), Turns(), [], [], []
    for document in range(1, rng.randint(2, 5)):
        lengths = [rng.randint(0, 6) for _ in range(2 * rng.randint(1, 5))] + [1, 1]
        turns.add(len(places), lengths)
        numbers += [pair for pair, length in enumerate(np.add(lengths[::2], lengths[1::2])) for _ in range(length)]
        documents += [document] * sum(lengths)
        places = range(len(documents))
    types = np.array([rng.randrange(3) for _ in places])
    ends = turns.exchanges(np.zeros(len(places), np.int32), []).turns

    tensors = [torch.tensor([values]) for values in (types.tolist(), documents)]
    plan = AttentionPlan.from_inputs(tensors[0], tensors[1], turn_ids=torch.tensor([numbers]))
    first = np.array([documents.index(document) for document in documents])
    document_ends = first + np.bincount(documents)[documents] - 1
    expected = plan.last_seen(LayerRules.of(config))[0].numpy() + first
    for kind in range(3):
        keys = np.flatnonzero(types == kind)
        actual = last_seen(keys, config.windows[kind], config.turns[kind], ends)
        assert (np.diff(actual) >= 0).all()
        assert (np.minimum(actual, document_ends[keys]) == expected[keys]).all()


@pytest.mark.parametrize("from_end", [False, True])
@pytest.mark.parametrize("cutoff_len", [13, 40, 77, 200])
def test_lengths_are_those_that_llamafactory_leaves(lf, from_end, cutoff_len, tmp_path, tiny_qwen3):
    """Each message consists of a mark of its own: what is left of it can be counted in the row."""
    data = lf.write_data(tmp_path, data=[lf.dialogue([0, 2] * 4, words=8)])
    args = lf.args(data, "data", cutoff_len=cutoff_len, mask_history=from_end, template="qwen3_nothink")
    prepared = lf.prepare(args)
    whole = lf.prepare({**args, "cutoff_len": 2048})
    labels, ids = whole.rows()[0]["labels"], whole.rows()[0]["input_ids"]
    opening = prepared.tokenizer.encode("<|im_start|>assistant\n")
    starts = [k for k in range(len(ids)) if ids[k : k + len(opening)] == opening]
    bounds = [0]
    for start in starts:
        first = start + len(opening)
        bounds += [first, next((k for k in range(first, len(ids)) if ids[k] == ids[0]), len(ids))]
    lengths = np.diff(bounds).tolist()
    assert len(lengths) == 8 and (from_end or labels[bounds[1]] != -100)

    pairs = [([0] * prompt, [0] * response) for prompt, response in zip(lengths[::2], lengths[1::2])]
    kept = sorted(kept_lengths(pairs, 0, cutoff_len, from_end))
    turns = [(bounds[2 * k + side], length) for k, *both in kept for side, length in enumerate(both)]
    assert [ids[k] for start, length in turns for k in range(start, start + length)] == prepared.rows()[0]["input_ids"]


def test_real_trajectories(lf, tmp_path):
    """With the shipped preset and the default window no reply sees the image or the feedback that it answers."""
    data = lf.SHARED / "data" / "embodied"
    if not data.is_dir():
        pytest.skip("../shared is absent")
    samples = json.loads((data / "embodied.json").read_text("utf-8"))
    texts = [message["content"] for sample in samples for message in sample["messages"]]
    tokenizer = tiny.build_tokenizer(texts, vocab_size=2048, extra_special_tokens=[lf.MARKER])
    model = tiny.save_tiny("qwen2_vl", tmp_path / "model", [], tokenizer=tokenizer)
    args = lf.args(data, "embodied_unlabelled", model, template="qwen2_vl", cutoff_len=32768, media_dir=str(data))
    args |= {"output_dir": str(tmp_path / "out")}
    account = lf.prepare(args, HSAConfig(rules="embodied-reasoner"), FeedbackConfig()).counts
    sight = account["sight"]
    assert (sight["replies"], sight["blind"]) == (48, 46)
    assert (sight["media"], sight["media_unseen_at_start"], sight["media_unseen_at_end"]) == (26, 24, 24)
    assert (sight["marker"], sight["marker_unseen_at_start"]) == (22, 22)
    assert (sight["message"], sight["message_partly_seen_at_start"], sight["message_unseen_at_start"]) == (48, 46, 0)
    said = describe_sight(account)
    assert "24 of 26 replies after an image or other media see nothing of it, 22 of 22 replies after the" in said

    window = account["windows_needed"]["NOISE"]
    assert f"set hsa.noise_turns=1 (0 where replies are LANDMARK); or hsa.noise_window={window}; or" in said
    in_turns = lf.prepare(args, HSAConfig(rules="embodied-reasoner", noise_turns=0), FeedbackConfig()).counts
    assert in_turns["sight"]["message_partly_seen_at_end"] == in_turns["sight"]["blind"] == 0
    assert in_turns["windows_needed"] == {}
    wide = lf.prepare(args, HSAConfig(rules="embodied-reasoner", noise_window=window), FeedbackConfig()).counts
    assert wide["sight"]["message_partly_seen_at_end"] == wide["sight"]["blind"] == 0 and describe_sight(wide) == ""


def test_without_hsa_nothing_is_counted(lf, tmp_path):
    data = lf.write_data(tmp_path, data=[lf.dialogue([0, 2, 2, 2], words=60)])
    model = lf.model_dir("qwen3", extra=(lf.MARKER,))
    args = lf.args(data, "data", model)
    assert lf.prepare(args, None, FeedbackConfig()).counts["sight"] == {}
    args |= {"tokenized_path": str(tmp_path / "saved")}
    first = lf.prepare(args, HSAConfig(), FeedbackConfig()).counts
    assert first["sight"]["replies"] == 2 and lf.prepare(args, HSAConfig(), FeedbackConfig()).counts == first
    other = lf.prepare(args, HSAConfig(noise_window=3), FeedbackConfig()).counts
    assert (other["sight"], other["windows_needed"]) == ({}, {}), "the data were counted with other rules"


def test_counts_add_up_over_batches_and_windows_do_not():
    report = DataReport()
    for window in (30, 90, 60):
        account = DatasetAccount(samples=1, kept=1)
        account.add_sight({"replies": 2, "blind": 1, "hidden": 0}, {"NOISE": window})
        report.add(serialize_accounts({"data": account}))
    values = report.to_dict()["datasets"]["data"]
    assert values["sight"] == {"replies": 6, "blind": 3, "hidden": 0} and values["windows_needed"] == {"NOISE": 90}
    assert json.loads(json.dumps(values)) == values
    assert DataReport.from_dict(report.to_dict()).to_dict() == report.to_dict()


def test_what_to_set_is_said_by_what_hides():
    sight = {"replies": 4, "message": 4, "message_unseen_at_start": 4, "hidden": 4}
    assert "The option hsa.hide keeps it, or a part of it, from 4 of them." in describe_sight({"sight": sight})
    windows = {"LANDMARK": 9, "NOISE": 70}
    said = describe_sight({"sight": {**sight, "hidden": 0}, "windows_needed": windows})
    assert "set hsa.landmark_turns=1, hsa.noise_turns=1 (0 where replies are LANDMARK); or" in said
    assert "hsa.landmark_window=9, hsa.noise_window=70; or give these messages the type GLOBAL." in said
    assert "hide" not in said and "(0" not in describe_sight({"sight": sight, "windows_needed": {"LANDMARK": 9}})
