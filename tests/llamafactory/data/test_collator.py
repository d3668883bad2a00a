"""Batches: padding on either side, dummy images, labels and types that fit the ids, and errors for what does not."""

import copy

import numpy as np
import pytest
import torch

from hsa_factory import FeedbackConfig, HSAConfig


M = "<|feedback|>"
HSA, FEEDBACK = HSAConfig(noise_window=4), FeedbackConfig()
G, L, N = 0, 1, 2
MODELS = {"qwen3": "qwen3", "qwen2_5_vl": "qwen2_vl", "qwen2_vl": "qwen2_vl"}
LENGTHS = (5, 11, 8)


class Setup:
    """Features with values that tell where they come from, and the collators for them."""

    def __init__(self, lf, model_type, data):
        self.lf = lf
        self.directory = lf.model_dir(model_type, extra=(M,))
        messages = [lf.say("user", "<m0>", G), lf.say("assistant", "<m1>", N)]
        lf.write_data(data, data=[messages])
        args = lf.args(data, "data", self.directory, template=MODELS[model_type])
        self.prepared = lf.prepare(args, HSA, FEEDBACK)
        self.tokenizer = self.prepared.tokenizer
        self.marker = self.tokenizer.convert_tokens_to_ids(M)
        self.vision = model_type != "qwen3"
        self.model = lf.model(self.directory, HSA)

    def collator(self, hsa=HSA, feedback=None, side="right", model=True, **more):
        self.tokenizer.padding_side = side
        return self.lf.collator(self.prepared, hsa, feedback, self.model if model else None, **more)

    def features(self, lengths=LENGTHS):
        """Row r has ids 10·r + 1, …; its labels are odd values that are no ids of it."""
        rows = []
        for r, length in enumerate(lengths):
            ids = [10 * (r + 1) + i for i in range(length)]
            rows.append(
                {
                    "input_ids": ids,
                    "attention_mask": [1] * length,
                    "labels": [1000 + 2 * token + 1 for token in ids],
                    "semantic_ids": [(r + i) % 3 for i in range(length)],
                }
            )
        return rows


@pytest.fixture(scope="module", params=MODELS)
def setup(request, lf, tmp_path_factory):
    return Setup(lf, request.param, tmp_path_factory.mktemp("collator"))


@pytest.fixture(scope="module")
def text(lf, tmp_path_factory):
    return Setup(lf, "qwen3", tmp_path_factory.mktemp("collator"))


def place(batch, row, ids):
    """Return where the ids of a feature lie in its row of the batch."""
    values = batch["input_ids"][row].tolist()
    (start,) = [i for i in range(len(values) - len(ids) + 1) if values[i : i + len(ids)] == ids]
    return slice(start, start + len(ids))


@pytest.mark.parametrize("lengths", [LENGTHS, LENGTHS[::-1], (7,), (16, 16)])
@pytest.mark.parametrize("multiple", [None, 8])
@pytest.mark.parametrize("side", ["right", "left"])
def test_everything_lies_where_the_ids_lie(setup, side, multiple, lengths):
    """With the dummy image that vision models get for a batch of text: before the ids on the left, else behind."""
    features = setup.features(lengths)
    unchanged = copy.deepcopy(features)
    batch = setup.collator(side=side, pad_to_multiple_of=multiple)(features)
    assert features == unchanged
    width = batch["input_ids"].shape[1]
    assert multiple is None or width % multiple == 0
    for name in ("attention_mask", "labels", "semantic_ids"):
        assert batch[name].shape == batch["input_ids"].shape
        assert batch[name].dtype == torch.int64
    for row, feature in enumerate(features):
        where = place(batch, row, feature["input_ids"])
        for name in ("labels", "semantic_ids", "attention_mask"):
            assert batch[name][row, where].tolist() == feature[name]
        outside = torch.ones(width, dtype=torch.bool)
        outside[where] = False
        assert (batch["labels"][row, outside] == -100).all()
        assert (batch["semantic_ids"][row, outside] == N).all()
        assert (batch["attention_mask"][row, outside] == 0).all()
        dummy = (batch["input_ids"][row, outside] == getattr(setup.model.config, "image_token_id", -1)).any()
        assert dummy == (setup.vision and row == 0)
    assert batch["input_ids"][0, -1 if side == "left" else 0] == features[0]["input_ids"][-1 if side == "left" else 0]


@pytest.mark.parametrize("side", ["right", "left"])
def test_ids_and_mask_are_those_of_llamafactory(setup, side):
    features = [{**row, "labels": list(row["input_ids"])} for row in setup.features()]
    typed = setup.collator(HSA, FEEDBACK, side=side)(features)
    for feature in features:
        del feature["semantic_ids"]
    plain = setup.collator(None, None, side=side)(copy.deepcopy(features))
    assert set(typed) == set(plain) | {"semantic_ids"}
    for name, value in plain.items():
        assert torch.equal(typed[name], value), name


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_row_gives_the_logits_of_the_row_alone(setup, side):
    features = [{**row, "labels": list(row["input_ids"])} for row in setup.features()]
    with torch.no_grad():
        batch = setup.collator(side=side)(features)
        together = setup.model(**batch).logits
        for row, feature in enumerate(features):
            single = setup.collator(side="right")([feature])
            alone = setup.model(**single).logits[0, : len(feature["input_ids"])]
            assert torch.allclose(together[row, place(batch, row, feature["input_ids"])], alone, atol=1e-4)


# -- feedback --------------------------------------------------------------------------------------------------


def with_markers(features, marker, places):
    for feature, where in zip(features, places):
        for i in where:
            feature["input_ids"][i] = marker
    return features


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("occurrence", ["first", "last"])
def test_features_without_a_record_are_masked_by_the_marker(setup, side, occurrence):
    places = ((1,), (2, 6), ())
    features = with_markers(setup.features(), setup.marker, places)
    batch = setup.collator(HSA, FeedbackConfig(occurrence=occurrence), side=side)(features)
    for row, (feature, where) in enumerate(zip(features, places)):
        masked = (where[0 if occurrence == "first" else -1] + 1) if where else 0
        expected = [-100] * masked + feature["labels"][masked:]
        assert batch["labels"][row, place(batch, row, feature["input_ids"])].tolist() == expected


def test_the_recorded_sides_win_over_the_ids(setup):
    """What was decided on the whole sample holds, whatever markers are in the row."""
    features = with_markers(setup.features((6, 6)), setup.marker, ((4,), (2,)))
    features[0]["loss_mask"] = [0, 1, 0, 1, 1, 1]
    features[1]["loss_mask"] = [1] * 6
    batch = setup.collator(HSA, FEEDBACK)(features)
    for row, feature in enumerate(features):
        expected = [
            label if keep else -100 for label, keep in zip(feature["labels"], feature["loss_mask"], strict=True)
        ]
        assert batch["labels"][row, place(batch, row, feature["input_ids"])].tolist() == expected
    assert "loss_mask" not in batch


@pytest.mark.parametrize("missing", ["drop", "error"])
def test_features_without_a_marker(text, missing):
    features = with_markers(text.features((5, 5)), text.marker, ((1,), ()))
    collator = text.collator(HSA, FeedbackConfig(missing=missing))
    if missing == "error":
        with pytest.raises(ValueError, match=r"no <\|feedback\|> \(feedback.missing is 'error'\)"):
            collator(features)
        return
    labels = collator(features)["labels"]
    assert (labels[1] == -100).all()
    assert labels[0, 2:5].tolist() == features[0]["labels"][2:]


def test_a_batch_with_nothing_to_train_is_an_error_not_a_nan(text):
    features = with_markers(text.features((4, 5)), text.marker, ((3,), (4,)))
    with pytest.raises(ValueError, match="No token of this batch is left to train.*would be NaN"):
        text.collator(HSA, FEEDBACK)(features)
    features[1]["input_ids"][4] = 3
    features[1]["input_ids"][2] = text.marker
    assert (text.collator(HSA, FEEDBACK)(features)["labels"] != -100).sum() == 2


def test_feedback_without_hsa_needs_no_types(setup):
    features = with_markers(setup.features((6, 4)), setup.marker, ((2,), ()))
    for feature in features:
        del feature["semantic_ids"]
    batch = setup.collator(None, FEEDBACK)(features)
    assert "semantic_ids" not in batch
    assert batch["labels"][0, :6].tolist() == [-100] * 3 + features[0]["labels"][3:]
    typed = setup.collator(None, FEEDBACK)(with_markers(setup.features((6, 4)), setup.marker, ((2,), ())))
    assert "semantic_ids" not in typed


def test_hsa_without_feedback_knows_no_marker(setup):
    features = with_markers(setup.features((6,)), setup.marker, ((2,),))
    labels = features[0]["labels"]
    assert setup.collator(HSA, None)(features)["labels"][0, :6].tolist() == labels
    features[0]["loss_mask"] = [1, 1, 1, 0, 0, 1]  # weights, which the processor recorded
    batch = setup.collator(HSA, None)(features)
    assert batch["labels"][0, :6].tolist() == [*labels[:3], -100, -100, labels[5]]
    assert "loss_mask" not in batch


def test_references_of_another_length_stay_as_they_are(text):
    """`predict_with_generate` compares with labels that are not aligned with the prompt."""
    features = [{"input_ids": [5, text.marker, 7], "attention_mask": [1] * 3, "labels": [8, 9, 10, 11, 12]}]
    batch = text.collator(None, FEEDBACK, model=False, pad_to_multiple_of=None)(features)
    assert batch["labels"][0].tolist() == [8, 9, 10, 11, 12]


# -- errors ----------------------------------------------------------------------------------------------------


def test_missing_types_are_an_error(setup):
    features = setup.features()
    del features[1]["semantic_ids"]
    with pytest.raises(ValueError, match="A sample has no `semantic_ids`.*must be tokenized again"):
        setup.collator()(features)


@pytest.mark.parametrize("length", [0, 4, 6])
def test_types_of_another_length_are_an_error(setup, length):
    features = setup.features((5,))
    features[0]["semantic_ids"] = [G] * length
    with pytest.raises(ValueError, match=f"{length} semantic_ids do not fit 5 input_ids"):
        setup.collator()(features)


def test_a_record_of_another_length_is_an_error(setup):
    features = setup.features((5,))
    features[0]["loss_mask"] = [1] * 4
    with pytest.raises(ValueError, match="5 labels do not fit a loss_mask of 4"):
        setup.collator(HSA, FEEDBACK)(features)


# -- kinds of values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, tuple])
def test_types_may_be_arrays_tensors_or_tuples(text, kind):
    features, expected = text.features(), text.collator()(text.features())
    for feature in features:
        feature["semantic_ids"] = kind(feature["semantic_ids"])
        feature["loss_mask"] = kind([1] * len(feature["input_ids"]))
    batch = text.collator(HSA, FEEDBACK)(features)
    assert torch.equal(batch["semantic_ids"], expected["semantic_ids"])
    assert torch.equal(batch["labels"], expected["labels"])


def test_large_document_numbers_stay_exact(setup):
    """Numbers of documents above 2^24 would not survive a float mask."""
    number = 2**24 + 1
    features = setup.features((6,))
    features[0]["attention_mask"] = [number] * 3 + [number + 1] * 3
    batch = setup.collator()(features)
    where = place(batch, 0, features[0]["input_ids"])
    assert batch["attention_mask"][0, where].tolist() == features[0]["attention_mask"]
