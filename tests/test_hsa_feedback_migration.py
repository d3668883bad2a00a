"""The migration's two cases, through the real LLaMA-Factory pipeline: `python tests/test_hsa_feedback_migration.py`.

1. Labels up to and including `<|feedback|>` are -100; those after it keep their value.
2. `semantic_ids` has the shape of `input_ids`, and a forward of the HSA model gives a finite loss.

Each for Qwen2-VL, Qwen2.5-VL (with images, and with the dummy image of a text-only batch) and Qwen3, padded left and
right. Data, tokenizer and models are made here; nothing is downloaded.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path


if __name__ == "__main__":  # only what was checked is to be read
    os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "ERROR")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.train.sft import workflow
from PIL import Image

from hsa_factory import FeedbackConfig, HSAConfig, SemanticType, tiny
from hsa_factory.feedback import IGNORE_INDEX
from hsa_factory.llamafactory import integrate


MARKER = "<|feedback|>"
MODELS = {"qwen3": "qwen3_nothink", "qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_vl"}
CASES = [
    (model_type, padding_side, with_images)
    for model_type in MODELS
    for padding_side in ("left", "right")
    for with_images in ((False, True) if model_type.endswith("vl") else (False,))
]

# What each turn says, and its type: the words are found again in the tokens.
TURNS = [
    ("system", "You are a robot in a kitchen.", "GLOBAL_CONDITION"),
    ("user", "Task: bring the red cup to the table.", "GLOBAL_CONDITION"),
    ("assistant", "I walk to the sofa first.", "NOISE"),
    ("user", f"{MARKER}There is no cup on the sofa.", "PROCESS_NOISE"),
    ("assistant", "The cup must be on the shelf, so I turn around.", "noise"),
    ("user", "You see a shelf with a red cup.", "NOISE"),
    ("assistant", "pick up the red cup", "KEY_EVENT"),
]
TYPES = {"GLOBAL_CONDITION": 0, "KEY_EVENT": 1, "NOISE": 2, "PROCESS_NOISE": 2, "noise": 2}


def make_data(directory: Path, with_images: bool) -> None:
    """Write two samples of different length."""
    samples = []
    for number, turns in enumerate((TURNS, TURNS[:5])):
        messages = [{"role": role, "content": text, "semantic_type": kind} for role, text, kind in turns]
        sample = {"messages": messages}
        if with_images:
            messages[1]["content"] = "<image>" + messages[1]["content"]
            path = directory / f"{number}.png"
            Image.new("RGB", (56, 56), (200, 40 * number, 40)).save(path)
            sample["images"] = [path.name]
        samples.append(sample)

    (directory / "data.json").write_text(json.dumps(samples), encoding="utf-8")
    columns = {"messages": "messages"} | ({"images": "images"} if with_images else {})
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    tags |= {"system_tag": "system", "semantic_tag": "semantic_type"}
    info = {"migration": {"file_name": "data.json", "formatting": "sharegpt", "columns": columns, "tags": tags}}
    (directory / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")


def collate(directory: Path, model_type: str, padding_side: str, integrated: bool) -> tuple:
    """Prepare data, model and one batch as LLaMA-Factory's SFT workflow does."""
    args = {
        "model_name_or_path": str(directory / "model"),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "dataset": "migration",
        "dataset_dir": str(directory),
        "media_dir": str(directory),
        "template": MODELS[model_type],
        "cutoff_len": 512,
        "output_dir": str(directory / f"out_{integrated}"),
        "overwrite_cache": True,
        "report_to": "none",
    }
    context = integrate(HSAConfig(), FeedbackConfig(token=MARKER)) if integrated else contextlib.nullcontext()
    with context, contextlib.redirect_stdout(io.StringIO()):
        model_args, data_args, training_args, finetuning_args, _ = get_train_args(args)
        tokenizer_module = workflow.load_tokenizer(model_args)
        tokenizer = tokenizer_module["tokenizer"]
        if not integrated:  # the same ids for both
            tokenizer.add_tokens([MARKER], special_tokens=True)
        tokenizer.padding_side = padding_side
        template = get_template_and_fix_tokenizer(tokenizer, data_args)
        module = workflow.get_dataset(template, model_args, data_args, training_args, stage="sft", **tokenizer_module)
        model = workflow.load_model(tokenizer, model_args, finetuning_args, True)
        collator = workflow.SFTDataCollatorWith4DAttentionMask(
            template=template,
            model=model,
            pad_to_multiple_of=8,
            label_pad_token_id=IGNORE_INDEX,
            block_diag_attn=model_args.block_diag_attn,
            attn_implementation=model.config._attn_implementation,
            compute_dtype=torch.float32,
            **tokenizer_module,
        )
        rows = list(module["train_dataset"])
        batch = collator([dict(row) for row in rows])
    return model, tokenizer, rows, batch


def check_case(model_type: str, padding_side: str, with_images: bool) -> list[str]:
    """Run both cases and return what was checked."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        tiny.save_tiny(model_type, directory / "model", [text for _, text, _ in TURNS])
        make_data(directory, with_images)
        *_, plain = collate(directory, model_type, padding_side, integrated=False)
        model, tokenizer, rows, batch = collate(directory, model_type, padding_side, integrated=True)

    marker_id = tokenizer.convert_tokens_to_ids(MARKER)
    assert torch.equal(batch["input_ids"], plain["input_ids"]), "input_ids differ from plain LLaMA-Factory's"
    assert len(tokenizer.encode(MARKER, add_special_tokens=False)) == 1

    masked = trained = 0
    for row in range(len(rows)):
        positions = (batch["input_ids"][row] == marker_id).nonzero().flatten()
        assert len(positions) == 1, "each sample holds the marker once"
        marker = int(positions[0])
        assert (batch["labels"][row, : marker + 1] == IGNORE_INDEX).all(), "a label up to the marker is trained"
        assert torch.equal(batch["labels"][row, marker + 1 :], plain["labels"][row, marker + 1 :])
        masked += int((plain["labels"][row, : marker + 1] != IGNORE_INDEX).sum())
        trained += int((batch["labels"][row] != IGNORE_INDEX).sum())
    assert masked > 0 and trained > 0

    semantic_ids = batch["semantic_ids"]
    assert semantic_ids.shape == batch["input_ids"].shape
    for row, sample in enumerate(rows):
        real = semantic_ids[row, : len(sample["input_ids"])]
        if padding_side == "left":
            real = semantic_ids[row, semantic_ids.shape[1] - len(sample["input_ids"]) :]
        assert real.tolist() == sample["semantic_ids"]
        check_types(tokenizer, sample)
    padding = batch["attention_mask"] == 0
    assert (semantic_ids[padding] == int(SemanticType.NOISE)).all(), "padding is NOISE"

    loss = model(**batch).loss
    assert torch.isfinite(loss), "the loss is not finite"
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)

    shape = tuple(semantic_ids.shape)
    return [
        f"case 1: {masked} labels up to {MARKER} masked that plain LLaMA-Factory trains, {trained} after it unchanged",
        f"case 2: semantic_ids {shape} = input_ids {tuple(batch['input_ids'].shape)}, loss {loss.item():.4f} finite",
    ]


def check_types(tokenizer, sample: dict) -> None:
    """Find every turn's words again in the tokens and compare their types."""
    pieces = [tokenizer.decode([token]) for token in sample["input_ids"]]
    text = "".join(pieces)
    owner = [index for index, piece in enumerate(pieces) for _ in piece]
    start = 0
    for _, words, kind in TURNS:
        found = text.find(words, start)
        if found < 0:
            assert (words, kind) in [(turn[1], turn[2]) for turn in TURNS[5:]], f"{words!r} is missing"
            continue
        tokens = {owner[position] for position in range(found, found + len(words))}
        types = {sample["semantic_ids"][token] for token in tokens}
        assert types == {TYPES[kind]}, f"{words!r} has the types {types}, not {TYPES[kind]}"
        start = found + len(words)


def pytest_generate_tests(metafunc) -> None:
    """Let pytest collect the same cases."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES, ids=["-".join(map(str, case)) for case in CASES])


def test_migration(case) -> None:
    check_case(*case)


def main() -> int:
    """Run every case and print what was checked."""
    failures = 0
    for model_type, padding_side, with_images in CASES:
        content = "images" if with_images else "dummy image" if model_type.endswith("vl") else "text"
        print(f"{model_type}, padded {padding_side}, {content}")
        try:
            for line in check_case(model_type, padding_side, with_images):
                print(f"  ok  {line}")
        except AssertionError as error:
            failures += 1
            print(f"  FAILED  {error or 'see the line above'}")

    print(f"{len(CASES) - failures} passed, {failures} failed")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
