"""JSON files in which some contents are texts and others lists of parts, which `datasets` cannot read as they are."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError
from llamafactory.extras import logging

from ..._version import __version__
from ...labeling.columns import write_rows
from ...labeling.formats import DatasetFormat, Sample
from ...labeling.job import parse_sample
from ...labeling.parts import uniform_parts
from ...labeling.records import read_chunks
from ...labeling.trajectories.normalise import normalise
from ...semantics import SemanticType
from ...whole_files import whole_file


logger = logging.get_logger(__name__)


def load_dataset(original: Any, dataset_format: DatasetFormat, **kwargs: Any) -> Any:
    """Load a data set as `datasets.load_dataset` does; JSON files that it cannot read are read part by part.

    Args:
        original: `datasets.load_dataset`.
        dataset_format: Of the samples.
        **kwargs: Of `datasets.load_dataset`.

    Raises:
        DatasetGenerationError: If the file cannot be read for another reason than lists of parts.
        ValueError: If a part is not valid; the message names file, sample and turn.
    """
    try:
        return original(**kwargs)
    except DatasetGenerationError:
        files = kwargs.get("data_files")
        if kwargs.get("path") != "json" or not files or dataset_format.formatting == "alpaca":
            raise
        if not any(
            isinstance(content, list) for sample in _samples(files) for content in _contents(sample, dataset_format)
        ):
            raise
        table = _as_parquet(files, dataset_format, kwargs.get("cache_dir"))
        logger.info_rank0(f"{', '.join(files)}: contents are texts and lists of parts; read as parts.")
        return original(**{**kwargs, "path": "parquet", "data_files": [str(table)]})


def _as_parquet(files: list[str], dataset_format: DatasetFormat, cache_dir: str | None) -> Path:
    """Write the samples with all contents as lists of parts, once for each state of the files."""
    stats = [(os.path.abspath(file), os.stat(file)) for file in files]
    state = [__version__, repr(dataset_format), [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]]
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]
    table = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "hsa_factory" / f"{key}.parquet"
    if not table.is_file():
        with whole_file(table) as partial:
            write_rows(lambda: (_uniform(sample, dataset_format) for sample in _samples(files)), partial)
    return table


def _samples(files: list[str]) -> Iterator[dict[str, Any]]:
    for chunk in read_chunks(files):
        for number, row in enumerate(chunk.samples):
            try:
                yield parse_sample(row)
            except ValueError as error:
                raise ValueError(f"{', '.join(files)}, {chunk.where(number)}: {error}") from None


def _contents(sample: Sample, dataset_format: DatasetFormat) -> Iterator[Any]:
    messages = sample.get(dataset_format.messages)
    for message in messages if isinstance(messages, list) else []:
        yield message.get(dataset_format.content_tag)


def _uniform(sample: Sample, dataset_format: DatasetFormat) -> dict[Any, Any]:
    """Return a sample whose contents are lists of parts that all have the same keys, and whose types are names."""
    sample = normalise(sample, dataset_format)
    messages = []
    for number, message in enumerate(sample[dataset_format.messages]):
        try:
            changed: dict[Any, Any] = {
                dataset_format.content_tag: uniform_parts(
                    message[dataset_format.content_tag], dataset_format.semantic_tag
                )
            }
            if dataset_format.semantic_tag is not None and message.get(dataset_format.semantic_tag) not in (None, ""):
                changed[dataset_format.semantic_tag] = SemanticType.parse(message[dataset_format.semantic_tag]).name
        except (ValueError, KeyError) as error:
            raise ValueError(f"turn {number} of {sample!r:.80}…: {error}") from None
        messages.append({**message, **changed})
    return {**sample, dataset_format.messages: messages}
