"""Samples from files of any size, read in chunks: JSON lists, JSON lines, Parquet and standard input."""

import codecs
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO


CHUNK_SAMPLES = 1000
CHUNK_BYTES = 8 << 20
_BLOCK_BYTES = 1 << 20
_LARGEST_SAMPLE = 512 << 20
_UNTERMINATED = "Unterminated string"  # how the message of `json` begins
_SPACE = " \t\r\n"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_decode = json.JSONDecoder().raw_decode


@dataclass(frozen=True)
class SampleChunk:
    """Some samples, not parsed yet.

    Attributes:
        index: Its place in the input.
        samples: Bytes of JSON, one item a sample; or one Arrow record batch.
        places: Where each sample stands, for messages; of a record batch, only where the first does.
        unit: What `places` count.
        bytes_read: Bytes of the input read so far.
    """

    index: int
    samples: Any
    places: Sequence[int]
    unit: str
    bytes_read: int

    def without_samples(self) -> "SampleChunk":
        """Return the same without what takes memory."""
        return replace(self, samples=None, places=())

    def where(self, number: int) -> str:
        """Say where a sample of the chunk stands."""
        place = self.places[number] if len(self.places) > 1 else self.places[0] + number
        return f"{self.unit} {place}"


def read_chunks(paths: Sequence[str]) -> Iterator[SampleChunk]:
    """Read files one after another, or standard input (``-``).

    Memory: a chunk, and one sample, however long the file is.

    Raises:
        ValueError: If a file is not what its name or its beginning says; the message names file, line or byte.
        FileNotFoundError: If there is no such file.
    """
    index = before = 0
    for path in paths:
        name = "standard input" if path == "-" else path
        several = f"{name}, " if len(paths) > 1 else ""
        parts = _read_parquet(path) if path.endswith(".parquet") else _read_json(path, name)
        for samples, places, unit, bytes_read in parts:
            yield SampleChunk(index, samples, places, several + unit, before + bytes_read)
            index += 1
        if path != "-":
            before += Path(path).stat().st_size


def _read_parquet(path: str) -> Iterator[tuple[Any, list[int], str, int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            row, total, size = 0, max(file.metadata.num_rows, 1), Path(path).stat().st_size
            for batch in file.iter_batches(_rows_of_a_chunk(file.metadata)):
                first, row = row, row + batch.num_rows
                yield batch, [first], "row", size * row // total
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file: {error}. Was it copied whole?") from None


def _rows_of_a_chunk(metadata: Any) -> int:
    """Return how many rows of a Parquet file are about as large as a chunk may be: pictures may lie in them."""
    size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    return max(1, min(CHUNK_SAMPLES, CHUNK_BYTES * metadata.num_rows // max(size, 1)))


def _read_json(path: str, name: str) -> Iterator[tuple[list[bytes], list[int], str, int]]:
    file = sys.stdin.buffer if path == "-" else open(path, "rb")
    try:
        start = file.read(_BLOCK_BYTES)
        if start.startswith(_UTF16):
            raise ValueError(f"{name}: is UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8).")
        start = start.removeprefix(codecs.BOM_UTF8)
        first = start.lstrip()[:1]
        reader: _ValueReader | _LineReader
        if first == b"[":
            reader, unit = _ListReader(file, start, name), "sample"
        elif first == b"{" and _spans_lines(start):
            reader, unit = _ValueReader(file, start, name), "sample"
        elif first == b"{":
            reader, unit = _LineReader(file, start, name), "line"
        elif not first:
            return
        else:
            raise ValueError(f"{name}: neither a JSON list nor JSON lines: it begins with {start[:20]!r}.")

        samples, places, size = [], [], 0
        for place, sample in reader.samples():
            samples.append(sample)
            places.append(place)
            size += len(sample)
            if len(samples) == CHUNK_SAMPLES or size >= CHUNK_BYTES:
                yield samples, places, unit, reader.bytes_read
                samples, places, size = [], [], 0
        if samples:
            yield samples, places, unit, reader.bytes_read
    finally:
        if path != "-":
            file.close()


class _LineReader:
    """One JSON object a line; empty lines are passed over."""

    def __init__(self, file: BinaryIO, start: bytes, name: str) -> None:
        self.file, self.start, self.name = file, start, name
        self.bytes_read = 0

    def samples(self) -> Iterator[tuple[int, bytes]]:
        number = 0
        for line in self._lines():
            number += 1
            self.bytes_read += len(line)
            if line.strip():
                yield number, line
            if len(line) > _LARGEST_SAMPLE:
                raise ValueError(f"{self.name}, line {number}: longer than {_LARGEST_SAMPLE >> 20} MiB.")

    def _lines(self) -> Iterator[bytes]:
        *lines, rest = self.start.split(b"\n")
        yield from (line + b"\n" for line in lines)
        rest += self.file.readline()
        if rest:
            yield rest
        yield from self.file


class _ValueReader:
    """JSON objects one after another, found by decoding them; bytes that are no UTF-8 are kept for the one they are in."""

    problem = "it is broken"

    def __init__(self, file: BinaryIO, start: bytes, name: str) -> None:
        self.file, self.name = file, name
        # Each byte that is no UTF-8 becomes a lone surrogate, and that byte again when the sample is encoded.
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text = self.decoder.decode(start)
        self.position = 0
        self.bytes_read = len(start)
        self.at_end = False

    def samples(self) -> Iterator[tuple[int, bytes]]:
        number = 0
        while self._next():
            yield number, self._value(number)
            number += 1

    def _value(self, number: int) -> bytes:
        """Go to the end of the value that begins here, and return it."""
        while True:
            self._next()
            try:
                _, end = _decode(self.text, self.position)
                break
            except json.JSONDecodeError as error:
                if not self.at_end and _is_cut(error, self.text):
                    self._read(grow=True)
                    continue
                found = self.text[error.pos : error.pos + 40]
                is_cut = not found or error.msg.startswith(_UNTERMINATED)
                raise self._error(number, f"{error.msg}; {found!r}", is_cut) from None
            except RecursionError:
                raise self._error(number, "nested too deeply") from None
        value = self.text[self.position : end].encode("utf-8", "surrogateescape")
        self.position = end
        return value

    def _next(self) -> str:
        """Go to the next character that is no space, and return it; empty at the end."""
        while True:
            while self.position < len(self.text) and self.text[self.position] in _SPACE:
                self.position += 1
            if self.position < len(self.text) or self.at_end:
                return self.text[self.position : self.position + 1]
            self._read()

    def _read(self, grow: bool = False) -> None:
        """Read on; what has been yielded is forgotten."""
        rest = self.text[self.position :]
        if len(rest) > _LARGEST_SAMPLE:
            raise ValueError(f"{self.name}: a sample longer than {_LARGEST_SAMPLE >> 20} MiB.")
        block = self.file.read(max(_BLOCK_BYTES, len(rest) if grow else 0))
        self.at_end = not block
        self.bytes_read += len(block)
        self.text, self.position = rest + self.decoder.decode(block, final=self.at_end), 0

    def _error(self, number: int, problem: str, is_cut: bool = False) -> ValueError:
        advice = " The file ends there: was it copied whole?" if is_cut else ""
        return ValueError(f"{self.name}, sample {number}: {self.problem}: {problem}.{advice}")


class _ListReader(_ValueReader):
    """The elements of one JSON list."""

    problem = "the JSON list is broken"

    def samples(self) -> Iterator[tuple[int, bytes]]:
        number = 0
        self._next()
        self.position += 1
        if self._next() == "]":
            self.position += 1
            self._finish()
            return
        while True:
            yield number, self._value(number)
            separator = self._next()
            self.position += 1
            if separator == "]":
                self._finish()
                return
            if separator != ",":
                raise self._error(number, f"expected , or ] after it, got {separator!r}", not separator)
            number += 1

    def _finish(self) -> None:
        if self._next():
            raise ValueError(f"{self.name}: there is something after the end of the JSON list.")


def _spans_lines(start: bytes) -> bool:
    """Whether a file that begins like this holds objects written over several lines, or several on one."""
    goes_on = len(start) >= _BLOCK_BYTES - len(codecs.BOM_UTF8)
    text = start.decode("utf-8", "surrogateescape").lstrip(_SPACE)
    line, ends, _ = text.partition("\n")
    try:
        json.loads(line)
        return False
    except RecursionError:
        return False
    except json.JSONDecodeError as error:
        if not ends and goes_on and _is_cut(error, line):
            return False  # one line, longer than what has been read
    try:
        _decode(text, 0)
        return True
    except RecursionError:
        return False
    except json.JSONDecodeError as error:
        return goes_on and _is_cut(error, text)


def _is_cut(error: json.JSONDecodeError, text: str) -> bool:
    """Whether an error may come from the end of what has been read."""
    return error.msg.startswith(_UNTERMINATED) or error.pos > len(text) - 12
