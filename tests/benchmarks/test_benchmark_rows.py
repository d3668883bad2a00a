"""The comparison of one sequence with a sample a reply trains the same tokens, and no table mixes machines."""

import sys
from pathlib import Path

import pytest


SCRIPTS = Path(__file__).parents[2] / "benchmarks"
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def scripts():
    """Let the scripts be imported as when they run."""
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


@pytest.fixture
def trajectories(scripts):
    import trajectories

    torch.manual_seed(0)
    return trajectories


@pytest.fixture
def results(scripts, tmp_path, monkeypatch):
    import results

    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return results


def trained_ids(rows, ignored):
    return torch.cat([row.labels[row.labels != ignored] for row in rows]).tolist()


def test_both_ways_train_the_same_tokens(trajectories):
    messages = trajectories.synthetic(13, 2048, vocabulary=1000)
    whole, rows = trajectories.one_row(messages), trajectories.row_per_reply(messages, keep=1)
    assert len(messages) == 13 and len(whole.input_ids) == 2048 and len(rows) == 6
    expected = trained_ids([whole], trajectories.IGNORED)
    assert len(expected) == 6 * (trajectories.REPLY - trajectories.HEADER - 1)
    assert trained_ids(rows, trajectories.IGNORED) == expected
    assert torch.equal(whole.turn_ids.unique(), torch.arange(6))


def test_old_observations_alone_are_cut(trajectories):
    kinds = trajectories.SemanticType
    spoken = [(False, kinds.GLOBAL, 60), (True, kinds.NOISE, 20), (False, kinds.NOISE, 100), (True, kinds.NOISE, 21)]
    spoken += [(False, kinds.LANDMARK, 101), (True, kinds.LANDMARK, 22), (False, kinds.NOISE, 102)]
    spoken += [(True, kinds.NOISE, 23), (False, kinds.NOISE, 103), (True, kinds.NOISE, 24)]
    messages = [trajectories.make_message(*message, vocabulary=1000) for message in spoken]
    last = trajectories.row_per_reply(messages, keep=1)[-1].input_ids
    assert len(last) == 60 + 20 + trajectories.CUT + 21 + 101 + 22 + 102 + 23 + 103 + 24
    assert len(trajectories.row_per_reply(messages, keep=0)[-1].input_ids) == len(last) - 102 + trajectories.CUT
    assert len(trajectories.row_per_reply(messages, keep=3)[-1].input_ids) == sum(length for *_, length in spoken)


def test_where_nothing_is_forgotten_or_cut_all_ways_have_the_same_gradients(scripts, trajectories):
    import one_sequence
    from model_step import make_model

    from hsa_factory import HSAConfig, disable_hsa, enable_hsa

    messages, model = trajectories.synthetic(9, 900, vocabulary=1000), make_model(64)
    whole, far = trajectories.one_row(messages), len(messages)

    def gradient(rows, turns=None, batch_tokens=0):
        config = HSAConfig(noise_turns=turns, landmark_decay=0.0)
        disable_hsa(model) if turns is None else enable_hsa(model, config)
        groups = one_sequence.batches_of(rows, batch_tokens)
        one_sequence.step(model, [one_sequence.collate(group, turns is not None) for group in groups], trained=48)
        return model.model.layers[0].self_attn.q_proj.weight.grad.clone()

    plain = gradient([whole])
    assert plain.norm() > 0.01
    torch.testing.assert_close(gradient([whole], turns=far), plain, rtol=1e-3, atol=1e-5)
    for batch_tokens in (0, 2000):  # one after another, and padded
        rows = gradient(trajectories.row_per_reply(messages, keep=far), batch_tokens=batch_tokens)
        torch.testing.assert_close(rows, plain, rtol=1e-3, atol=1e-5)
    assert (gradient([whole], turns=1) - plain).abs().max() > 1e-3
    assert (gradient(trajectories.row_per_reply(messages, keep=1)) - plain).abs().max() > 1e-3


def test_keys_in_sight_are_counted_by_the_rules(scripts, trajectories):
    import one_sequence

    from hsa_factory import HSAConfig
    from hsa_factory.attention import LayerRules

    types, turns = torch.tensor([0, 2, 2, 2, 2, 2]), torch.tensor([0, 0, 1, 1, 2, 2])
    labels = torch.tensor([trajectories.IGNORED] * 4 + [7, 8])
    row = trajectories.Row(torch.arange(6), labels, types, turns)
    assert one_sequence.keys_in_sight([row], None) == (4 + 5) / 2
    rules = LayerRules.of(HSAConfig(noise_turns=1))
    assert one_sequence.keys_in_sight([row], rules) == (4 + 4) / 2  # the key of turn 0 is gone at the fifth token
    batches = one_sequence.batches_of([row] * 5, limit=12)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert [len(batch) for batch in one_sequence.batches_of([row] * 2, limit=0)] == [1, 1]


def test_a_run_replaces_its_own_cases_and_tables_are_of_one_machine(results):
    def row(tokens, seconds, machine, **more):
        return {"tokens": tokens, "seconds": seconds, **more, "threads": 1, "machine": machine}

    results.write("x.csv", [row(1, 5, "old"), row(2, 6, "old"), row(3, 7, "new")])
    results.merge("x.csv", [row(1, 8, "new", limit=2), row(3, 9, "new", limit=2)], keys=("tokens",))
    rows = results.read("x.csv")
    assert [(row["tokens"], row["seconds"], row["machine"]) for row in rows] == [
        ("1", "5", "old"),
        ("2", "6", "old"),
        ("1", "8", "new"),
        ("3", "9", "new"),
    ]
    assert [row["limit"] for row in rows] == ["", "", "2", "2"]
    results.merge("x.csv", [row(4, 1, "new", limit=2)], keys=("tokens",))
    assert {row["machine"] for row in results.of_one_setting(results.read("x.csv"))} == {"new"}
    assert results.of_one_setting([]) == [] and results.read("missing.csv") == []
