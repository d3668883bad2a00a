"""Rows to batches: padded, packed, without padding, in pairs."""

from types import SimpleNamespace

import pytest
import torch
from helpers import enabled, run
from runs import CONFIG, LENGTHS, row, rows

from hsa_factory import HSAConfig
from hsa_factory.training import HSADataCollator, HSAPreferenceCollator, pair_rows


def lists(batch):
    return {name: values.tolist() for name, values in batch.items()}


SHORT = [
    {"input_ids": [5, 6, 7], "semantic_ids": [0, 1, 2], "labels": [-100, 6, 7], "turn_ids": [0, 1, 1]},
    {"input_ids": [8, 9], "semantic_ids": [0, 2], "labels": [8, 9], "turn_ids": [3, 3], "loss_weights": [1.0, 0.5]},
]


@pytest.fixture
def collator(tiny_tokenizer):
    return HSADataCollator(tiny_tokenizer)


@pytest.fixture
def pad(tiny_tokenizer):
    return tiny_tokenizer.pad_token_id


class TestPadded:
    def test_right(self, tiny_tokenizer, pad):
        batch = HSADataCollator(tiny_tokenizer, pad_to_multiple_of=4, padding_side="right")(SHORT)
        assert lists(batch) == {
            "input_ids": [[5, 6, 7, pad], [8, 9, pad, pad]],
            "attention_mask": [[1, 1, 1, 0], [1, 1, 0, 0]],
            "semantic_ids": [[0, 1, 2, 2], [0, 2, 2, 2]],
            "turn_ids": [[0, 1, 1, 0], [3, 3, 0, 0]],
            "labels": [[-100, 6, 7, -100], [8, 9, -100, -100]],
            "loss_weights": [[1, 1, 1, 0], [1, 0.5, 0, 0]],
        }
        assert batch["loss_weights"].dtype == torch.float32 and batch["semantic_ids"].dtype == torch.long

    def test_left_and_the_tokenizers_side(self, tiny_tokenizer, pad):
        batch = HSADataCollator(tiny_tokenizer, padding_side="left")(SHORT)
        assert batch["input_ids"].tolist() == [[5, 6, 7], [pad, 8, 9]]
        assert batch["semantic_ids"].tolist() == [[0, 1, 2], [2, 0, 2]]
        assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
        assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 8, 9]]
        side = tiny_tokenizer.padding_side
        try:
            tiny_tokenizer.padding_side = "left"
            assert torch.equal(HSADataCollator(tiny_tokenizer)(SHORT)["labels"], batch["labels"])
        finally:
            tiny_tokenizer.padding_side = side

    def test_tensors_lists_and_what_is_not_known(self, collator):
        as_tensors = [{name: torch.tensor(values) for name, values in one.items()} for one in SHORT]
        extra = [
            {**one, "text": "hello", "id": 7, "messages": [{"role": "user"}], "pixel_values": None} for one in SHORT
        ]
        assert lists(collator(as_tensors)) == lists(collator(SHORT)) == lists(collator(extra))
        assert SHORT[0]["labels"] == [-100, 6, 7]

    def test_images_stand_behind_each_other(self, collator):
        media = [
            {"pixel_values": torch.ones(4, 6), "image_grid_thw": [[1, 2, 2]], "mm_token_type_ids": [[0, 1, 1]]},
            {"pixel_values": (2 * torch.ones(8, 6)).double().numpy(), "image_grid_thw": [[1, 4, 2]]},
        ]
        batch = collator([{**one, **more} for one, more in zip(SHORT, media, strict=True)])
        assert batch["pixel_values"].shape == (12, 6) and batch["pixel_values"].dtype == torch.float32
        assert batch["image_grid_thw"].tolist() == [[1, 2, 2], [1, 4, 2]]
        assert batch["mm_token_type_ids"].tolist() == [[0, 1, 1], [0, 0, 0]]
        with pytest.raises(ValueError, match="Row 0 .*pixel_values.*padding_free=False"):
            HSADataCollator(collator.tokenizer, padding_free=True)([{**SHORT[0], **media[0]}])

    def test_lost_images_are_an_error(self, tiny_tokenizer):
        """`Dataset.from_list` drops what the first row does not have; the model would read the places as text."""
        processor = SimpleNamespace(tokenizer=tiny_tokenizer, image_token_id=9, video_token_id=None)
        with pytest.raises(ValueError, match="Row 1 .*has places of images, but no `pixel_values`"):
            HSADataCollator(processor)(SHORT)
        shown = {"pixel_values": torch.ones(4, 6), "image_grid_thw": [[1, 2, 2]]}
        assert HSADataCollator(processor)([SHORT[0], SHORT[1] | shown])["pixel_values"].shape == (4, 6)


class TestDocuments:
    def test_padding_free(self, tiny_tokenizer, pad):
        batch = HSADataCollator(tiny_tokenizer, padding_free=True, pad_to_multiple_of=8)(SHORT)
        assert lists(batch) == {
            "input_ids": [[5, 6, 7, 8, 9, pad, pad, pad]],
            "position_ids": [[0, 1, 2, 0, 1, 0, 1, 2]],
            "semantic_ids": [[0, 1, 2, 0, 2, 2, 2, 2]],
            "turn_ids": [[0, 1, 1, 3, 3, 0, 0, 0]],
            "labels": [[-100, 6, 7, -100, 9, -100, -100, -100]],  # 8 would be foretold by another's 7
            "loss_weights": [[1, 1, 1, 1, 0.5, 0, 0, 0]],
        }

    @pytest.mark.parametrize(
        "told",
        [{"seq_lengths": [20, 11]}, {"position_ids": [*range(20), *range(11)]}, {"document_ids": [4] * 20 + [1] * 11}],
    )
    @pytest.mark.parametrize("padding_free", [False, True])
    def test_documents_are_those_that_stand_alone(self, tiny_tokenizer, told, padding_free):
        first, second, third = row(20), row(11), row(25)
        packed = {name: first[name] + second[name] for name in first} | told
        model = enabled("llama", CONFIG)
        batch = HSADataCollator(tiny_tokenizer, padding_free=padding_free)([packed, third])
        labels = batch.pop("labels")
        logits = run(model, **batch)
        real = (
            batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones_like(labels, dtype=torch.bool)
        )
        alone = [
            run(model, torch.tensor([one["input_ids"]]), semantic_ids=torch.tensor([one["semantic_ids"]]))[0]
            for one in (first, second, third)
        ]
        torch.testing.assert_close(logits[real], torch.cat(alone), atol=2e-5, rtol=2e-5)
        assert labels[real].tolist() == first["labels"] + second["labels"] + third["labels"]

    def test_what_does_not_add_up(self, collator):
        with pytest.raises(ValueError, match="Row 0 .*`seq_lengths` tells of 4 tokens, but there are 3"):
            collator([{**SHORT[0], "seq_lengths": [2, 2]}])
        with pytest.raises(ValueError, match="`position_ids` must be one whole number a token"):
            collator([{**SHORT[0], "position_ids": [[0, 1, 2]] * 3}])
        with pytest.raises(ValueError, match="Row 0 .*holds padding"):
            HSADataCollator(collator.tokenizer, padding_free=True)([{**SHORT[0], "attention_mask": [1, 1, 0]}])


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"semantic_ids": None}, "Row 1 .*has no `semantic_ids`.*remove_unused_columns=False"),
            ({"semantic_ids": [0]}, "Row 1 .*1 `semantic_ids` do not fit 2 input_ids"),
            ({"labels": [1, 2, 3]}, "Row 1 .*3 `labels` do not fit 2 input_ids.*max_length"),
            ({"loss_weights": [1.0]}, "Row 1 .*1 `loss_weights`"),
            ({"semantic_ids": [0, 3]}, r"Row 1 .*holds \[3\]; a type is 0, 1 or 2"),
            ({"turn_ids": None}, "Row 1 .*has no `turn_ids`, but others have"),
            ({"labels": None}, "Row 1 .*has no `labels`, but others have"),
            ({"input_ids": None}, "Row 1 of the batch has no `input_ids`"),
        ],
    )
    def test_rows_are_named(self, collator, change, message):
        with pytest.raises(ValueError, match=message):
            collator([SHORT[0], {**SHORT[1], **change}])

    def test_a_row_shows_how_it_begins(self, collator, tiny_tokenizer):
        ids = tiny_tokenizer.encode("The robot opens the fridge")
        with pytest.raises(ValueError, match="Row 0 of the batch .'The robot opens"):
            collator([{"input_ids": ids}])

    def test_nothing_to_train(self, collator):
        with pytest.raises(ValueError, match="No token of this batch is trained"):
            collator([{**SHORT[0], "labels": [-100] * 3}])
        with pytest.raises(ValueError, match="no rows"):
            collator([])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"pad_to_multiple_of": 0}, "pad_to_multiple_of = 0 is not allowed"),
            ({"pad_to_multiple_of": 8.0}, "pad_to_multiple_of = 8.0"),
            ({"padding_side": "up"}, "padding_side = 'up'"),
            ({"tokenizer": HSAConfig()}, "must be a tokenizer or a processor, got HSAConfig"),
        ],
    )
    def test_options(self, tiny_tokenizer, options, message):
        with pytest.raises(ValueError, match=message):
            HSADataCollator(**{"tokenizer": tiny_tokenizer} | options)


class TestPairs:
    CHOSEN = {"input_ids": [5, 6, 7, 8, 9], "semantic_ids": [0, 0, 1, 2, 2], "labels": [-100, -100, 7, 8, 9]}
    REJECTED = {"input_ids": [5, 6, 7, 3], "semantic_ids": [0, 0, 1, 1], "labels": [-100, -100, 7, 3]}

    def test_the_reply_in_which_they_part_is_trained(self):
        pair = pair_rows(self.CHOSEN, self.REJECTED)
        assert pair["chosen_labels"] == [-100, -100, 7, 8, 9] and pair["rejected_labels"] == [-100, -100, 7, 3]
        assert pair["rejected_semantic_ids"] == [0, 0, 1, 1] and self.CHOSEN["labels"][2] == 7
        # an earlier reply that both have is prompt
        replies = [{**one, "labels": [5, -100, *one["labels"][2:]]} for one in (self.CHOSEN, self.REJECTED)]
        assert pair_rows(*replies)["chosen_labels"] == [-100, -100, 7, 8, 9]

    def test_batch(self, tiny_tokenizer, pad):
        batch = HSAPreferenceCollator(tiny_tokenizer)([{**pair_rows(self.CHOSEN, self.REJECTED), "margin": 2}])
        assert lists(batch) == {
            "input_ids": [[5, 6, 7, 8, 9], [5, 6, 7, 3, pad]],
            "attention_mask": [[1] * 5, [1, 1, 1, 1, 0]],
            "semantic_ids": [[0, 0, 1, 2, 2], [0, 0, 1, 1, 2]],
            "completion_mask": [[0, 0, 1, 1, 1], [0, 0, 1, 1, 0]],
            "margin": [2.0],
        }
        batch = HSAPreferenceCollator(tiny_tokenizer, completion_mask=False)([pair_rows(self.CHOSEN, self.REJECTED)])
        assert set(batch) == {"input_ids", "attention_mask", "semantic_ids"}

    def test_refused(self, tiny_tokenizer):
        with pytest.raises(ValueError, match="The rejected row has `loss_weights`"):
            pair_rows(self.CHOSEN, {**self.REJECTED, "loss_weights": [1.0] * 4})
        with pytest.raises(ValueError, match="The rejected row has no trained token that the other has not"):
            pair_rows(self.CHOSEN, {**self.REJECTED, "labels": [-100] * 4})
        pair = pair_rows(self.CHOSEN, self.REJECTED)
        del pair["rejected_semantic_ids"]
        with pytest.raises(ValueError, match="Row 0 .*has no `rejected_semantic_ids`"):
            HSAPreferenceCollator(tiny_tokenizer)([pair])


def test_however_it_is_laid_out_the_loss_is_the_same(tiny_tokenizer):
    model = enabled("llama", CONFIG)
    found = []
    for options in (
        {"padding_side": "left"},
        {"padding_side": "right", "pad_to_multiple_of": 16},
        {"padding_free": True},
    ):
        batch = HSADataCollator(tiny_tokenizer, **options)(rows())
        with torch.no_grad():
            found.append(model(**batch, num_items_in_batch=sum(LENGTHS) - 16).loss.item())
    assert found == pytest.approx([found[0]] * 3, abs=1e-6)
