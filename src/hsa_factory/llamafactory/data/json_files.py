"""JSON files as a data set of samples that are not parsed yet.

`datasets` makes columns of a sample's keys, and each column holds one type: tool arguments of several types, contents that
are texts here and lists there, or a key that comes late stop it, depending on which sample comes first. Here every sample is
one value, which the converter parses.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError

from ..._version import __version__
from ...labeling.job import parse_sample
from ...labeling.records import read_chunks
from ...labeling.trainable import check_characters


JSON_COLUMN = "_hsa_json"  # a sample as it stands in its file
PLACE_COLUMN = "_hsa_place"  # where that is, for messages
_FEATURES = datasets.Features({JSON_COLUMN: datasets.Value("binary"), PLACE_COLUMN: datasets.Value("string")})


@dataclass
class SampleFilesConfig(datasets.BuilderConfig):
    """What the cached table depends on.

    Attributes:
        files: Paths.
        states: Size in bytes and time of change, in ns, of each.
        written_by: Version of this package.
    """

    files: list[str] = field(default_factory=list)
    states: list[list[int]] = field(default_factory=list)
    written_by: str = ""


class SampleFiles(datasets.ArrowBasedBuilder):
    """Reads files of JSON lists or lines into the cache of the `datasets` library."""

    BUILDER_CONFIG_CLASS = SampleFilesConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=_FEATURES)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name=datasets.Split.TRAIN, gen_kwargs={})]

    def _generate_tables(self) -> Iterator[tuple[tuple[int, int], pa.Table]]:
        is_empty = True
        for number, file in enumerate(self.config.files):
            for chunk in read_chunks([file]):
                is_empty = False
                places = [f"{os.path.basename(file)}, {chunk.where(row)}" for row in range(len(chunk.samples))]
                columns = {
                    JSON_COLUMN: pa.array(chunk.samples, pa.binary()),
                    PLACE_COLUMN: pa.array(places, pa.string()),
                }
                yield (number, chunk.index), pa.table(columns)
        if is_empty:
            raise ValueError(f"{', '.join(self.config.files)}: there is no sample in it.")


def load_json(files: Sequence[str], split: str, cache_dir: str | None = None) -> datasets.Dataset:
    """Return the samples of JSON files, read into the cache once for each state of the files.

    Args:
        files: Lists of JSON objects, JSON lines, or objects one after another; in this order.
        split: As of `datasets.load_dataset`; there is only ``train``.
        cache_dir: None: that of `datasets`.

    Returns:
        Columns `JSON_COLUMN` and `PLACE_COLUMN`.

    Raises:
        ValueError: If a file is broken (the message names file, and line or sample) or no sample is in any.
    """
    paths = [os.path.abspath(file) for file in files]
    stats = [os.stat(path) for path in paths]
    builder = SampleFiles(
        cache_dir=cache_dir,
        files=paths,
        states=[[stat.st_size, stat.st_mtime_ns] for stat in stats],
        written_by=__version__,
    )
    try:
        builder.download_and_prepare()
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
    return builder.as_dataset(split=split)


def parse_row(row: dict[str, Any]) -> Any:
    """Return the sample of a row.

    Raises:
        ValueError: If it is not JSON in UTF-8, has a key twice, or a text in it cannot be written in UTF-8.
    """
    text = row[JSON_COLUMN]
    try:
        sample = parse_sample(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if b"\\u" in text and (b"\\ud" in text or b"\\uD" in text):
        check_characters(sample)
    return sample


def read_samples(dataset: Any) -> Iterator[dict[Any, Any]]:
    """Yield the samples of a data set that `load_json` returned; those that cannot be read are left to the converter."""
    for row in dataset:
        try:
            sample = parse_row(row)
        except ValueError:
            continue
        if isinstance(sample, dict):
            yield sample


def find_missing(dataset: datasets.Dataset, columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the columns that no sample has, and those that the samples looked at have.

    As many samples are looked at as are needed to find each column once.
    """
    missing, found = set(columns), dict[str, None]()
    for sample in read_samples(dataset):
        missing -= sample.keys()
        found |= dict.fromkeys(sample)
        if not missing:
            break
    return [column for column in columns if column in missing], list(found)


def is_json(path: str, data_files: Sequence[str]) -> bool:
    """Whether arguments of `datasets.load_dataset` name JSON files of this machine."""
    return path == "json" and bool(data_files) and all(map(os.path.isfile, data_files))
