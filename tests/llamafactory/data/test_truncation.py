"""Truncation around pictures: a placeholder block is whole or gone, with its picture, and text is cut as ever."""

import itertools
import json

import pytest
import torch
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.data.processor import SupervisedDatasetProcessor
from llamafactory.hparams import DataArguments
from transformers import AutoProcessor

from hsa_factory import FeedbackConfig, HSAConfig, tiny
from hsa_factory.llamafactory.data.accounts import is_account_alone
from hsa_factory.llamafactory.data.processor import TypedSupervisedProcessor


HSA, TURNS = HSAConfig(), HSAConfig(noise_turns=1)
MODELS = ("qwen2_5_vl", "qwen2_vl")
SIZES = [(56, 56), (112, 56), (84, 84), (56, 112), (140, 84), (56, 56)]
START, END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
TOO_LONG = "media do not fit into cutoff_len"


class Trajectory:
    """A conversation with pictures: turns of the user's message and the reply, cut at any length."""

    def __init__(self, lf, model_type, directory):
        self.lf, self.model_type = lf, model_type
        self.model_dir = lf.model_dir(model_type, extra=(lf.MARKER,))
        self.processor = AutoProcessor.from_pretrained(self.model_dir)
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "right"
        self.template = get_template_and_fix_tokenizer(self.tokenizer, DataArguments(template="qwen2_vl"))
        self.paths = lf.images(directory, SIZES)
        self.turn_images = [self.paths[:1], [], self.paths[1:3], self.paths[3:5], [], self.paths[5:]]
        self.messages = []
        for k, images in enumerate(self.turn_images):
            text = lf.MARKS[2 * k] * 3 + f"<image>{lf.MARKS[2 * k]}" * len(images) + lf.MARKS[2 * k] * 4
            self.messages.append(lf.say("user", text, k % 3))
            self.messages.append(lf.say("assistant", lf.MARKS[2 * k + 1] * 9, (k + 1) % 3))
        self.start, self.end, self.image, self.video = self.tokenizer.convert_tokens_to_ids([START, END, IMAGE, VIDEO])
        self.whole = len(self.plain(cutoff_len=10_000)[0])

    @property
    def data(self):
        return {"messages": self.messages, "images": self.paths}

    def _processor(self, processor_class, template, options, **more):
        data_args = DataArguments(template="qwen2_vl", **options)
        return processor_class(template, self.tokenizer, self.processor, data_args, **more)

    def plain(self, template=None, **options):
        """Return ids and labels of plain LLaMA-Factory, which cuts wherever it has to."""
        processor = self._processor(SupervisedDatasetProcessor, template or self.template, options)
        return processor._encode_data_example(self.messages[:-1], self.messages[-1:], "", "", self.paths, [], [])

    def typed(self, feedback=None, **options):
        """Return the typed row, or None if it is dropped, and the account."""
        processor = self._processor(
            TypedSupervisedProcessor,
            self.template,
            options,
            hsa_config=HSA,
            attention_config=TURNS,
            feedback_config=feedback,
        )
        columns = self.lf.Oracle.columns([(self.messages, "", 0, "")])
        columns["_images"] = [list(self.paths)]
        columns = processor.preprocess_dataset(columns)
        account, *_ = columns.pop("hsa_account")
        rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
        return (None if is_account_alone(account) else rows[0]), json.loads(account)["data"]

    def expected(self, **options):
        """Return ids, labels, types and pictures that must remain, and whether whole turns go for them."""
        places = self.lf.Places(self.template)
        row, labels = self.plain(places, **options)
        ((pairs, ids),) = places.samples
        sizes = [len(prompt) + len(response) for prompt, response in pairs]
        bounds = list(itertools.pairwise([0, *itertools.accumulate(sizes)]))
        kinds = [
            message["semantic_type"]
            for message, part in zip(self.messages, itertools.chain.from_iterable(pairs))
            for _ in part
        ]
        head = len(self.template._convert_elements_to_ids(self.tokenizer, self._system_elements()))
        kinds[:head] = [0] * head  # the template's own system prompt

        order = range(len(bounds) - 1, -1, -1) if options.get("mask_history") else range(len(bounds))
        kept, removed = set(), False
        reached = {place - places.STRIDE for place in row}
        for k in order:
            turn = set(range(*bounds[k]))
            if not turn & reached:
                break
            if any(ids[place] in (self.start, self.end, self.image) for place in turn - reached):
                removed = True
                break
            kept.add(k)
        stays = [any(place - places.STRIDE in range(*bounds[k]) for k in kept) for place in row]
        left = [(place - places.STRIDE, label) for place, label, stay in zip(row, labels, stays) if stay]
        return {
            "input_ids": [ids[place] for place, _ in left],
            "labels": [-100 if label == -100 else ids[place] for place, label in left],
            "semantic_ids": [kinds[place] for place, _ in left],
            "turn_ids": [next(k for k, turn in enumerate(bounds) if place < turn[1]) for place, _ in left],
            "images": [path for k in sorted(kept) for path in self.turn_images[k]],
        }, removed

    def _system_elements(self):
        return self.template.format_prefix.apply() + self.template.format_system.apply(
            content=self.template.default_system
        )

    def check_blocks(self, row):
        """No block is cut: start, as many placeholders as the picture has, end."""
        ids = row["input_ids"]
        merge = self.processor.image_processor.merge_size**2
        sizes = []
        for path in row["images"] or []:
            inputs = self.template.mm_plugin._get_mm_inputs([path], [], [], self.processor)
            sizes.append(int(inputs["image_grid_thw"].prod()) // merge)
        runs = [(token, len(list(run))) for token, run in itertools.groupby(ids)]
        blocks = [number for token, number in runs if token == self.image]
        assert blocks == sizes
        for i, (token, _) in enumerate(runs):
            if token == self.image:
                assert runs[i - 1] == (self.start, 1) and runs[i + 1] == (self.end, 1)
        assert ids.count(self.start) == ids.count(self.end) == len(sizes)


@pytest.fixture(scope="module", params=MODELS)
def trajectory(request, lf, tmp_path_factory):
    return Trajectory(lf, request.param, tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def model(trajectory):
    return trajectory.lf.model(trajectory.model_dir, HSA)


def as_tensors(batch):
    return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}


def collator(trajectory, model, feedback=None):
    from hsa_factory.llamafactory.data.collator import HSADataCollator

    return HSADataCollator(
        template=trajectory.template,
        model=model,
        tokenizer=trajectory.tokenizer,
        processor=trajectory.processor,
        pad_to_multiple_of=8,
        compute_dtype=torch.float32,
        hsa_config=HSA,
        feedback_config=feedback,
    )


@pytest.mark.parametrize("first", [4, pytest.param(7, marks=pytest.mark.long)])
@pytest.mark.parametrize("mask_history", [False, True])
def test_no_cut_ever_falls_inside_a_picture(trajectory, model, mask_history, first):
    """At lengths from nothing to the whole from nothing to the whole: ids, labels, types and pictures are what must remain."""
    collate = collator(trajectory, model)
    outcomes, forwards = set(), set()
    for cutoff_len in range(first, trajectory.whole + 8, 6 if trajectory.model_type == "qwen2_5_vl" else 14):
        options = {"cutoff_len": cutoff_len, "mask_history": mask_history}
        expected, removed = trajectory.expected(**options)
        row, account = trajectory.typed(**options)
        trained = any(label != -100 for label in expected["labels"])
        if not trained:
            assert row is None
            reason = TOO_LONG if removed and not expected["input_ids"] else "nothing left to train"
            assert account["dropped"] == {reason: 1}
            outcomes.add(reason)
            continue

        assert {name: row[name] or [] for name in expected} == expected
        assert row["attention_mask"] == [1] * len(row["input_ids"])
        assert len(row["input_ids"]) <= cutoff_len
        plain_ids, plain_labels = trajectory.plain(**options)
        assert (row["input_ids"] == plain_ids) == (not removed)
        assert removed or row["labels"] == plain_labels
        assert account["turns_removed"] == int(removed)
        assert account["text_truncated"] == int(not removed and cutoff_len < trajectory.whole)
        trajectory.check_blocks(row)
        outcomes.add("removed" if removed else "cut" if cutoff_len < trajectory.whole else "whole")
        if len(row["images"] or []) not in forwards or removed:
            forwards.add(len(row["images"] or []))
            with torch.no_grad():
                assert torch.isfinite(model(**as_tensors(collate([row]))).loss)
    assert {"removed", "cut", "whole", TOO_LONG} <= outcomes
    assert len(forwards) >= 4


def test_plain_llamafactory_fails_where_the_cut_falls_inside_a_picture(trajectory, model):
    """As long as it does, the rest of this file means something."""
    from llamafactory.data import SFTDataCollatorWith4DAttentionMask

    collate = SFTDataCollatorWith4DAttentionMask(
        template=trajectory.template,
        model=trajectory.lf.model(trajectory.model_dir),
        tokenizer=trajectory.tokenizer,
        processor=trajectory.processor,
        pad_to_multiple_of=8,
    )
    for cutoff_len in range(20, trajectory.whole, 7):
        ids, labels = trajectory.plain(cutoff_len=cutoff_len)
        if trajectory.expected(cutoff_len=cutoff_len)[1]:
            break
    feature = {"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids), "images": trajectory.paths}
    with pytest.raises((RuntimeError, ValueError, IndexError, StopIteration)):
        collate.model(**as_tensors(collate([feature])))


def test_a_batch_of_differently_cut_rows(trajectory, model):
    rows = [trajectory.typed(cutoff_len=length)[0] for length in (trajectory.whole, 60, trajectory.whole - 40)]
    assert all(rows)
    batch = collator(trajectory, model)([dict(row) for row in rows])
    images = sum(len(row["images"] or []) for row in rows)
    assert len(batch["image_grid_thw"]) == images
    with torch.no_grad():
        assert torch.isfinite(model(**as_tensors(batch)).loss)


@pytest.mark.parametrize("occurrence", ["first", "last"])
def test_a_marker_in_a_removed_turn_leaves_nothing_to_train(lf, tmp_path, occurrence):
    trajectory = Trajectory(lf, "qwen2_5_vl", tmp_path)
    trajectory.messages[6]["content"] += lf.MARKER  # the user's turn with pictures 3 and 4
    feedback = FeedbackConfig(occurrence=occurrence)
    place = trajectory.plain(cutoff_len=10_000)[0].index(trajectory.tokenizer.convert_tokens_to_ids(lf.MARKER))
    outcomes = set()
    for cutoff_len in range(place - 40, trajectory.whole + 1, 5):
        row, account = trajectory.typed(feedback, cutoff_len=cutoff_len)
        assert account["with_marker"] == 1
        outcomes.add(row is not None)
        if row is None:
            assert account["dropped"] == {"nothing left to train": 1}
            continue
        trained = [
            token
            for token, label, keep in zip(row["input_ids"], row["labels"], row["loss_mask"])
            if label > 0 and keep
        ]
        marks = lf.mark_ids(trajectory.tokenizer)
        assert {marks[token] for token in trained if token in marks} <= {7, 9, 11}
        trajectory.check_blocks(row)
    assert outcomes == {True, False}


@pytest.mark.parametrize("options", [{}, {"mask_history": True}, {"neat_packing": True}, {"packing": True}])
def test_cuts_through_the_whole_pipeline(trajectory, model, tmp_path, options):
    lf = trajectory.lf
    words = [lf.say("user", "<m30>", 1), lf.say("assistant", "<m31>" * 5, 2)]
    data = lf.write_data(tmp_path, data=[trajectory.data, {"messages": words, "images": []}, trajectory.data])
    for eighths in (trajectory.whole // 16, trajectory.whole // 8 - 2, trajectory.whole // 8 + 8):
        cutoff_len = 8 * eighths  # with other lengths LLaMA-Factory's collator fails at packed rows with pictures
        args = lf.args(data, "data", trajectory.model_dir, template="qwen2_vl", cutoff_len=cutoff_len, **options)
        prepared = lf.prepare(args, HSA)
        kept = prepared.counts["kept"]
        assert kept == 3
        seen = 0
        for row in prepared.rows():
            trajectory.check_blocks(row)
            batch = lf.collator(prepared, HSA, None, model)([dict(row)])
            seen += len(row["images"] or [])
            with torch.no_grad():
                assert torch.isfinite(model(**as_tensors(batch)).loss)
        left = trajectory.expected(
            cutoff_len=prepared.data_args.cutoff_len, mask_history=bool(options.get("mask_history"))
        )
        assert seen == 2 * len(left[0]["images"])
        assert prepared.counts["turns_removed"] == 2 * left[1]


def test_a_picture_that_never_fits_is_dropped_and_counted(trajectory, tmp_path):
    lf = trajectory.lf
    words = [lf.say("user", "<m30>", 1), lf.say("assistant", "<m31>" * 5, 2)]
    big = [lf.say("user", "<image><m1>", 1), lf.say("assistant", "<m2>", 2)]
    (path,) = lf.images(tmp_path / "images", [(224, 224)])
    samples = [{"messages": words, "images": []}, {"messages": big, "images": [path]}]
    data = lf.write_data(tmp_path, data=samples)
    args = lf.args(data, "data", trajectory.model_dir, template="qwen2_vl", cutoff_len=70)
    prepared = lf.prepare(args, HSA)
    assert prepared.counts["dropped_samples"] == {TOO_LONG: [1]}
    assert len(prepared.rows()) == 1


def test_videos(lf, tmp_path):
    directory = lf.model_dir("qwen2_5_vl", extra=(lf.MARKER,))
    frames = lf.images(tmp_path / "frames", [(56, 56)] * 4)
    sample = {
        "messages": [
            lf.say("user", "<video><m0>", 0),
            lf.say("assistant", "<m1>" * 4, 1),
            lf.say("user", "<m2><video>", 2),
            lf.say("assistant", "<m3>" * 4, 0),
        ],
        "videos": [frames[:2], frames],
    }
    entry = {
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "videos": "videos"},
        "tags": lf.TAGS,
    }
    data = lf.write_data(tmp_path, data=(entry, [sample]))
    args = lf.args(data, "data", directory, template="qwen2_vl")
    whole = lf.prepare(args, HSA).rows()[0]
    video = lf.prepare(args, HSA).tokenizer.convert_tokens_to_ids(VIDEO)
    assert [row["input_ids"] for row in lf.prepare(args).rows()] == [whole["input_ids"]]
    model = lf.model(directory, HSA)
    seen = set()
    for cutoff_len in range(len(whole["input_ids"]) - 30, len(whole["input_ids"]) + 1, 2):
        prepared = lf.prepare({**args, "cutoff_len": cutoff_len}, HSA)
        (row,) = prepared.rows()
        seen.add(len(row["videos"]))
        batch = lf.collator(prepared, HSA, None, model)([dict(row)])
        assert row["input_ids"].count(video) * 4 == batch["video_grid_thw"].prod(dim=-1).sum()
        with torch.no_grad():
            assert torch.isfinite(model(**as_tensors(batch)).loss)
    assert seen == {1, 2}


@pytest.mark.parametrize("cutoff_len", [2048, 3000, 4096, 8192])
def test_real_trajectories(lf, tmp_path_factory, cutoff_len):
    data = lf.SHARED / "data" / "embodied"
    if not data.is_dir():
        pytest.skip("../shared is absent")
    samples = json.loads((data / "embodied.json").read_text("utf-8"))
    directory = lf.directory / "embodied"
    if not directory.is_dir():
        texts = [message["content"] for sample in samples for message in sample["messages"]]
        tokenizer = tiny.build_tokenizer(texts, vocab_size=2048, extra_special_tokens=[lf.MARKER])
        tiny.save_tiny("qwen2_5_vl", directory, [], tokenizer=tokenizer)
    args = lf.args(data, "embodied", directory, template="qwen2_vl", cutoff_len=cutoff_len)
    args |= {"output_dir": str(tmp_path_factory.mktemp("out")), "image_max_pixels": 512 * 512}
    feedback = FeedbackConfig(missing="train")
    prepared = lf.prepare(args, HSA, feedback)
    assert prepared.counts["samples"] == prepared.counts["with_marker"] == 2
    model = lf.model(directory, HSA)
    for row in prepared.rows():
        assert len(row["input_ids"]) <= cutoff_len
        batch = lf.collator(prepared, HSA, feedback, model)([dict(row)])
        with torch.no_grad():
            assert torch.isfinite(model(**as_tensors(batch)).loss)

    if cutoff_len == 2048:  # where plain LLaMA-Factory fails
        plain = lf.prepare(args)
        collate = lf.collator(plain, model=lf.model(directory))
        with pytest.raises((RuntimeError, ValueError, IndexError, StopIteration)):
            for row in plain.rows():
                collate.model(**as_tensors(collate([row])))
