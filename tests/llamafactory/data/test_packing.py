"""Packed rows: documents, types and loss masks follow their samples, and no sample changes its neighbour."""

import random

import llamafactory.data.collator
import pytest
import torch
from halves import half_long

from hsa_factory import FeedbackConfig, HSAConfig


HSA, FEEDBACK = HSAConfig(noise_window=3), FeedbackConfig()
TURNS = HSAConfig(noise_turns=0, landmark_turns=1)
COLUMNS = ("input_ids", "attention_mask", "labels", "semantic_ids", "loss_mask", "turn_ids")
G, L, N = 0, 1, 2


@pytest.fixture(scope="module")
def model_dir(lf):
    return lf.model_dir("qwen3", extra=(lf.MARKER,))


def numbered(lf, lengths, markers=(), seed=0):
    """Return conversations; sample k consists of mark k only, so that it is known wherever it goes."""
    rng = random.Random(seed)
    samples = []
    for k, words in enumerate(lengths):
        content = lf.MARKS[k] * words
        reply = content + lf.MARKER + content if k in markers else content
        kinds = rng.sample([G, L, N], 2)
        samples.append([lf.say("user", content, kinds[0]), lf.say("assistant", reply, kinds[1])])
    return samples


def documents(row):
    """Return (start, stop) of each document and where the padding starts."""
    mask = row["attention_mask"]
    numbers = [number for number in dict.fromkeys(mask) if number]
    assert numbers == list(range(1, len(numbers) + 1))
    places = [(mask.index(number), len(mask) - mask[::-1].index(number)) for number in numbers]
    assert all(set(mask[start:stop]) == {number} for (start, stop), number in zip(places, numbers))
    return places, places[-1][1]


def as_tensors(batch):
    return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("neat", [True, False])
def test_rows_follow_their_samples_through_the_knapsack(lf, model_dir, tmp_path, neat):
    conversations = numbered(lf, [3, 9, 1, 14, 2, 6, 4, 11, 5, 7], markers=(1, 4, 7))
    data = lf.write_data(tmp_path, data=conversations)
    args = lf.args(data, "data", model_dir, cutoff_len=96, packing=True, neat_packing=neat)
    prepared = lf.prepare(args, TURNS, FEEDBACK)
    plain = lf.prepare(args)
    samples = [(messages, "", 0, "") for messages in conversations]
    oracle = lf.Oracle(prepared.template, prepared.tokenizer, prepared.data_args, samples, FEEDBACK)
    rows, plain_rows = prepared.rows(), plain.rows()
    assert [{name: row[name] for name in COLUMNS} for row in rows] == oracle.rows
    plain_names = set(plain.module["train_dataset"].column_names)
    assert set(prepared.module["train_dataset"].column_names) == plain_names | {
        "semantic_ids",
        "loss_mask",
        "turn_ids",
        "hsa_dataset",
        "hsa_samples",
    }
    for row, plain_row in zip(rows, plain_rows, strict=True):
        assert {name: row[name] for name in plain_names} == plain_row
        assert len(row["input_ids"]) == 96
    # positions begin anew in both, but plain packing says that its samples see each other
    assert ("document_ids" in lf.collator(prepared, TURNS)(rows[:1])) is not neat

    order = [mark for row in rows for mark in dict.fromkeys(self_marks(lf, prepared, row))]
    assert sorted(order) == list(range(10)) and order != list(range(10))


def self_marks(lf, prepared, row):
    marks = lf.mark_ids(prepared.tokenizer)
    return [marks[token] for token in row["input_ids"] if token in marks]


def test_documents_types_and_padding(lf, model_dir, tmp_path):
    conversations = numbered(lf, [3, 9, 1, 14, 2, 6], markers=(1, 4))
    data = lf.write_data(tmp_path, data=conversations)
    args = lf.args(data, "data", model_dir, cutoff_len=128, neat_packing=True)
    prepared = lf.prepare(args, HSA, FEEDBACK)
    marks = lf.mark_ids(prepared.tokenizer)
    marker = prepared.tokenizer.convert_tokens_to_ids(lf.MARKER)
    several = 0
    for row in prepared.rows():
        places, padding = documents(row)
        several += len(places) > 1
        assert padding < len(row["input_ids"])  # LLaMA-Factory leaves one place at least
        assert set(row["input_ids"][padding:]) == {prepared.tokenizer.pad_token_id}
        assert set(row["semantic_ids"][padding:]) == {N}
        assert set(row["loss_mask"][padding:]) == {0}
        assert set(row["labels"][padding:]) == {-100}
        for start, stop in places:
            ids = row["input_ids"][start:stop]
            (number,) = {marks[token] for token in ids if token in marks}
            middle = start + next(i for i, label in enumerate(row["labels"][start:stop]) if label != -100)
            user, assistant = (message["semantic_type"] for message in conversations[number])
            types, trained = row["semantic_ids"], row["loss_mask"]
            assert types[start:middle] == [user] * (middle - start)
            assert types[stop - 1] == assistant
            before = ids.index(marker) + 1 if marker in ids else 0
            assert trained[start:stop] == [0] * before + [1] * (len(ids) - before)
    assert several


def test_a_marker_never_masks_its_neighbour(lf, model_dir, tmp_path):
    """The forks masked everything up to the first marker of a row, the samples before it included."""
    conversations = numbered(lf, [4, 4, 4, 4], markers=(0, 2))
    data = lf.write_data(tmp_path, data=conversations)
    args = lf.args(data, "data", model_dir, cutoff_len=512, neat_packing=True)
    prepared = lf.prepare(args, HSA, FEEDBACK)
    (row,) = prepared.rows()
    batch = lf.collator(prepared, HSA, FEEDBACK)([row])
    marks = lf.mark_ids(prepared.tokenizer)
    labels = batch["labels"][0].tolist()
    trained = [sum(label in marks and marks[label] == k for label in labels) for k in range(4)]
    assert trained == [4, 4, 4, 4]  # of the 8 marks of samples 0 and 2, the 4 after the marker
    assert prepared.tokenizer.convert_tokens_to_ids(lf.MARKER) not in labels
    # and LLaMA-Factory's own labels, where there is no marker
    plain = lf.collator(lf.prepare(args))([lf.prepare(args).rows()[0]])["labels"][0].tolist()
    assert [sum(label in marks and marks[label] == k for label in plain) for k in range(4)] == [8, 4, 8, 4]


def test_a_sample_that_is_too_long_is_dropped_and_counted(lf, model_dir, tmp_path):
    """Truncation leaves `cutoff_len` tokens at most; one EOS more is too long for a packed row."""
    name = "bailing"
    conversations = numbered(lf, [60, 2, 3])
    data = lf.write_data(tmp_path, data=conversations)
    args = lf.args(data, "data", model_dir, template=name, cutoff_len=100, packing=True)
    prepared = lf.prepare(args, HSA)
    plain = lf.prepare(args)
    assert [row["input_ids"] for row in prepared.rows()] == [row["input_ids"] for row in plain.rows()]
    account = prepared.counts
    assert account["kept"] + sum(account["dropped"].values()) == 3


@pytest.mark.parametrize("hsa", [HSA, None])
@pytest.mark.parametrize("cutoff_len", [400, 395])
@pytest.mark.parametrize("model_type", ["qwen3", "qwen2_5_vl"])
def test_a_packed_row_equals_its_samples_alone(lf, tmp_path, model_type, cutoff_len, hsa):
    directory = lf.model_dir(model_type, extra=(lf.MARKER,))
    template = "qwen3" if model_type == "qwen3" else "qwen2_vl"
    conversations = numbered(lf, [3, 9, 1, 6], markers=(1,), seed=3)
    data = lf.write_data(tmp_path, data=conversations)
    alone = lf.prepare(lf.args(data, "data", directory, template=template), hsa, FEEDBACK)
    packed = lf.prepare(
        lf.args(data, "data", directory, template=template, cutoff_len=cutoff_len, neat_packing=True), hsa, FEEDBACK
    )
    model = lf.model(directory, hsa)
    (row,) = packed.rows()
    batch = as_tensors(lf.collator(packed, hsa, FEEDBACK, model)([row]))
    assert batch["attention_mask"].dim() == (2 if hsa else 4)
    assert batch["input_ids"].shape[1] % 8 == 0 and batch["position_ids"].shape[-1] == batch["input_ids"].shape[1]
    with torch.no_grad():
        together = model(**batch).logits[0]

    single = {}
    for sample in alone.rows():
        inputs = lf.collator(alone, hsa, FEEDBACK, model)([sample])
        with torch.no_grad():
            single[tuple(sample["input_ids"])] = model(**as_tensors(inputs)).logits[0, : len(sample["input_ids"])]
    for start, stop in documents(row)[0]:
        expected = single[tuple(row["input_ids"][start:stop])]
        assert torch.allclose(together[start:stop], expected, atol=1e-4)
    assert len(documents(row)[0]) == 4


def test_no_square_mask_is_built_for_hsa_and_it_stays_for_feedback_alone(lf, model_dir, tmp_path, monkeypatch):
    data = lf.write_data(tmp_path, data=numbered(lf, [3, 2, 4], markers=(1,)))
    args = lf.args(data, "data", model_dir, cutoff_len=256, neat_packing=True)
    prepared = lf.prepare(args, HSA, FEEDBACK)
    rows = prepared.rows()
    with monkeypatch.context() as patched:
        square = lambda *args: pytest.fail("an N×N mask was built")  # noqa: E731
        patched.setattr(llamafactory.data.collator, "prepare_4d_attention_mask", square)
        batch = lf.collator(prepared, HSA, FEEDBACK)([dict(row) for row in rows])
    assert batch["attention_mask"].shape == batch["input_ids"].shape
    assert batch["attention_mask"].max() == 3

    alone = lf.collator(prepared, None, FEEDBACK)([dict(row) for row in rows])
    assert alone["attention_mask"].dim() == 4
    plain = lf.collator(lf.prepare(args))(lf.prepare(args).rows())
    assert torch.equal(alone["attention_mask"], plain["attention_mask"])
    assert torch.equal(alone["input_ids"], plain["input_ids"])


@pytest.mark.parametrize(
    ("model_type", "rows_a_batch", "hsa", "cutoff_len"),
    half_long(["qwen2_5_vl", "qwen2_vl"], [1, 2], [HSA, None], [200, 203]),
)
def test_text_only_rows_of_a_vision_model(lf, tmp_path, model_type, rows_a_batch, hsa, cutoff_len):
    """With its dummy image plain LLaMA-Factory makes mask and ids of different lengths here."""
    directory = lf.model_dir(model_type, extra=(lf.MARKER,))
    data = lf.write_data(tmp_path, data=numbered(lf, [3, 9, 1, 6, 12, 8], markers=(1,)))
    args = lf.args(data, "data", directory, template="qwen2_vl", cutoff_len=cutoff_len, neat_packing=True)
    prepared = lf.prepare(args, hsa, FEEDBACK)
    rows = prepared.rows()[:rows_a_batch]
    assert len(rows) == rows_a_batch and len(documents(rows[0])[0]) > 1
    model = lf.model(directory, hsa)
    batch = lf.collator(prepared, hsa, FEEDBACK, model)([dict(row) for row in rows])
    shape = batch["input_ids"].shape
    assert shape[0] == rows_a_batch
    if hsa is None:  # LLaMA-Factory's block-diagonal mask
        assert batch["attention_mask"].shape == (shape[0], 1, shape[1], shape[1])
    for name in ("attention_mask", "labels", "semantic_ids") if hsa else ("labels",):
        assert batch[name].shape == shape
    assert batch["position_ids"].shape[-2:] == shape
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        assert batch["input_ids"][i, :length].tolist() == row["input_ids"]
        if hsa is not None:
            assert batch["attention_mask"][i, :length].tolist() == row["attention_mask"]
            assert batch["semantic_ids"][i, :length].tolist() == row["semantic_ids"]
            assert not batch["attention_mask"][i, length:].any()
            assert (batch["semantic_ids"][i, length:] == N).all()
        assert (batch["labels"][i, length:] == -100).all()
    assert (batch["input_ids"][0] == model.config.image_token_id).any()
    with torch.no_grad():
        loss = model(**as_tensors(batch)).loss
    assert torch.isfinite(loss)


@pytest.mark.parametrize("hsa", [HSA, None])
@pytest.mark.parametrize("cutoff_len", [256, 251])
def test_packing_with_images(lf, tmp_path, hsa, cutoff_len):
    directory = lf.model_dir("qwen2_5_vl", extra=(lf.MARKER,))
    paths = lf.images(tmp_path / "images", [(56, 56), (84, 56), (112, 84), (56, 112)])
    samples = [
        {
            "messages": [lf.say("user", f"<image>{lf.MARKS[k]}", k % 3), lf.say("assistant", lf.MARKS[k] * 3, N)],
            "images": [path],
        }
        for k, path in enumerate(paths)
    ]
    samples.append({"messages": numbered(lf, [5])[0], "images": []})
    data = lf.write_data(tmp_path, data=samples)
    args = lf.args(data, "data", directory, template="qwen2_vl", cutoff_len=cutoff_len, neat_packing=True)
    prepared, plain = lf.prepare(args, hsa, FEEDBACK), lf.prepare(args)
    names = plain.module["train_dataset"].column_names
    assert [{name: row[name] for name in names} for row in prepared.rows()] == plain.rows()
    model = lf.model(directory, hsa)
    for row in prepared.rows():
        batch = lf.collator(prepared, hsa, FEEDBACK, model)([row])
        grids = batch["image_grid_thw"].prod(dim=-1).sum().item() // 4
        assert (batch["input_ids"] == model.config.image_token_id).sum() == grids
        assert batch["position_ids"].shape == (4, *batch["input_ids"].shape)
        with torch.no_grad():
            assert torch.isfinite(model(**as_tensors(batch)).loss)


@pytest.mark.parametrize(("hsa", "feedback"), [(HSA, FEEDBACK), (HSA, None), (None, FEEDBACK)])
def test_a_cutoff_that_is_no_multiple_of_8_trains_as_one_that_is(lf, model_dir, tmp_path, hsa, feedback):
    """With LoRA, through LLaMA-Factory's trainer; padding alone makes the rows differ."""
    data = lf.write_data(tmp_path, data=numbered(lf, [3, 9, 1, 6], markers=(1,)))
    losses = []
    for cutoff_len in (400, 397):
        out = str(tmp_path / str(cutoff_len))
        options = {"cutoff_len": cutoff_len, "neat_packing": True, "finetuning_type": "lora", "output_dir": out}
        losses.append(lf.train(lf.args(data, "data", model_dir, max_steps=1, **options), hsa, feedback))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 1


def test_a_row_names_all_its_data_sets(lf, model_dir, tmp_path):
    data = lf.write_data(tmp_path, first=numbered(lf, [3]), second=numbered(lf, [4]))
    args = lf.args(data, "first,second", model_dir, cutoff_len=128, neat_packing=True)
    (row,) = lf.prepare(args, HSA, FEEDBACK).rows()
    assert sorted(row["hsa_dataset"].split(", ")) == ["first", "second"]
