"""Random conversations, all templates, all options: what plain LLaMA-Factory makes, and no crash that it does not have.

`FUZZ_CONVERSATIONS` asks for more than the suite can take; `FUZZ_SEED` for others.
"""

import json
import os
import random
from unittest.mock import MagicMock

import pytest
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.data.processor import SupervisedDatasetProcessor, UnsupervisedDatasetProcessor
from llamafactory.data.template import TEMPLATES, ReasoningTemplate
from llamafactory.hparams import DataArguments
from random_conversations import Conversations, feedback_config, option_sets
from typed_oracle import prompt_types

from hsa_factory import HSAConfig
from hsa_factory.llamafactory.data.accounts import is_account_alone
from hsa_factory.llamafactory.data.prediction import TypedPredictionProcessor


NUMBER = int(os.environ.get("FUZZ_CONVERSATIONS", "1000"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
SEEDS = [SEED, pytest.param(SEED + 1, marks=pytest.mark.long)]
GROUP = 4  # conversations with the same options
# Of any vision-language model: without media, plugins ask it for little more than what is here.
PROCESSOR = MagicMock(image_seq_length=4, boi_token="<boi>", full_image_sequence="<boi><image><eoi>")
COLUMNS = ("input_ids", "attention_mask", "labels", "semantic_ids", "loss_mask", "turn_ids")
COUNTS = ("samples", "with_marker", "kept", "text_truncated", "trained_tokens", "marker_cut")


def fixed(name, tokenizer, **options):
    """Return the template, with a tokenizer that knows the tokens it names, as its models' do."""
    slots = [slot for formatter in vars(TEMPLATES[name]).values() for slot in getattr(formatter, "slots", [])]
    tokenizer.add_tokens([slot["token"] for slot in slots if isinstance(slot, dict)], special_tokens=True)
    return get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name, **options))


def encodes(processor, sample):
    """Whether plain LLaMA-Factory can encode a sample."""
    messages, system, _, tools = sample.facts
    try:
        processor._encode_data_example(messages[:-1], messages[-1:], system, tools, [], [], [])
    except Exception:
        return False
    return True


def check_training(lf, template, tokenizer, data_args, samples, feedback):
    """Compare a batch of training data with plain LLaMA-Factory and the oracle."""
    plain = SupervisedDatasetProcessor(template, tokenizer, PROCESSOR, data_args)
    good = []
    for sample in samples:
        if encodes(plain, sample):
            good.append(sample)
        else:
            with pytest.raises(ValueError, match="^dataset 'data', sample 0"):
                lf.typed_rows(template, tokenizer, data_args, [sample.facts], feedback, PROCESSOR)

    if not good:
        return
    facts = [sample.facts for sample in good]
    oracle = lf.Oracle(template, tokenizer, data_args, facts, feedback, PROCESSOR)
    rows, account = lf.typed_rows(template, tokenizer, data_args, facts, feedback, PROCESSOR)
    assert len(rows) == len(oracle.rows)
    for row, known in zip(rows, oracle.rows):
        for name in COLUMNS:
            if name == "semantic_ids":
                assert same_types(row[name], known[name]) == known[name]
            else:
                assert row[name] == known[name], name
    assert {name: account[name] for name in COUNTS} == {name: oracle.counts[name] for name in COUNTS}
    reasons = list(oracle.dropped.values())
    assert account["dropped"] == {reason: reasons.count(reason) for reason in set(reasons)}
    check_marks(lf, tokenizer, rows, good)


def same_types(types, known):
    """Return types, None where the oracle does not know them."""
    return [None if sure is None else kind for kind, sure in zip(types, known, strict=True)]


def check_marks(lf, tokenizer, rows, samples):
    """Compare types with those of the texts that they were given to."""
    marks = lf.mark_ids(tokenizer)
    for row in rows:
        parts = json.loads(row["hsa_samples"]) or [{"start": 0, "index": 0}]
        starts = [*(part["start"] for part in parts), len(row["input_ids"])]
        for part, start, stop in zip(parts, starts, starts[1:]):
            by_mark = samples[part["index"]].by_mark
            for token, kind in zip(row["input_ids"][start:stop], row["semantic_ids"][start:stop]):
                if token in marks and marks[token] in by_mark:
                    assert kind == by_mark[marks[token]], marks[token]


def check_prediction(lf, template, tokenizer, data_args, samples):
    """Compare prompts and references with plain LLaMA-Factory."""
    plain = UnsupervisedDatasetProcessor(template, tokenizer, PROCESSOR, data_args)
    typed = TypedPredictionProcessor(template, tokenizer, PROCESSOR, data_args, hsa_config=HSAConfig())
    for sample in samples:
        columns = lf.Oracle.columns([sample.facts])
        if not encodes(plain, sample):
            with pytest.raises(ValueError, match="^dataset 'data', sample 0"):
                typed.preprocess_dataset(columns)
            continue
        expected, made = plain.preprocess_dataset(columns), typed.preprocess_dataset(columns)
        rows = [dict(zip(made, values)) for values in zip(*made.values())]
        rows = [row for row in rows if not is_account_alone(row["hsa_account"])]
        if not expected["input_ids"][0]:
            assert rows == []
            continue
        (row,) = rows
        assert row["input_ids"] == expected["input_ids"][0] and row["labels"] == expected["labels"][0]
        known = prompt_types(template, tokenizer, sample.facts)[: len(row["input_ids"])]
        assert same_types(row["semantic_ids"], known) == known
        check_marks(lf, tokenizer, rows, [sample])


def check_template(lf, name, number, rng):
    tokenizer = lf.new_tokenizer(lf.MARKER)
    is_reasoning = isinstance(TEMPLATES[name], ReasoningTemplate)
    options = option_sets(TEMPLATES[name], is_reasoning, rng)
    for k in range(0, number, GROUP):
        chosen = next(options)
        template = fixed(name, tokenizer, **chosen)
        maker = Conversations(template, lf.MARKER, rng)
        samples = [maker.sample() for _ in range(min(GROUP, number - k))]
        data_args = DataArguments(template=name, **chosen)
        check_training(lf, template, tokenizer, data_args, samples, feedback_config(rng))
        check_prediction(lf, template, tokenizer, data_args, samples[:1])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_random_conversations_become_what_plain_llamafactory_makes(lf, name, seed):
    number = -(-NUMBER // len(TEMPLATES))
    check_template(lf, name, number, random.Random(f"{seed} {name}"))
