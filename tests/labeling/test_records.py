"""Reading samples in chunks: lists and lines of any shape, cut anywhere, broken anywhere."""

import io
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsa_factory.labeling import records
from hsa_factory.labeling.records import read_chunks


TEXTS = st.text(st.sampled_from('ab"\\{}[],: \n冰é👩\u202e\ud800'), max_size=12)
SAMPLES = st.lists(
    st.dictionaries(st.sampled_from(["a", "b", "ü"]), TEXTS | st.lists(TEXTS, max_size=3), max_size=3), max_size=8
)


def read(path):
    return [json.loads(sample) for chunk in read_chunks([str(path)]) for sample in chunk.samples]


def places(path):
    return [chunk.where(number) for chunk in read_chunks([str(path)]) for number in range(len(chunk.samples))]


@pytest.fixture(params=[7, 64, 1 << 20])
def block(request, monkeypatch):
    """How much is read at once: every cut is tried."""
    monkeypatch.setattr(records, "_BLOCK_BYTES", request.param)
    monkeypatch.setattr(records, "CHUNK_SAMPLES", 3)


class TestLists:
    @pytest.mark.usefixtures("block")
    @given(samples=SAMPLES, indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
    def test_any_list(self, tmp_path_factory, samples, indent, ascii_only):
        path = tmp_path_factory.mktemp("list") / "data.json"
        text = json.dumps(samples, indent=indent, ensure_ascii=ascii_only)
        if not ascii_only:
            text = text.replace("\ud800", "?")
            samples = json.loads(text)
        path.write_text(text, "utf-8")
        assert read(path) == samples

    @pytest.mark.usefixtures("block")
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('[{"a": 1}, {"b": 2}', "sample 1: the JSON list is broken: expected , or ] after it"),
            ('[{"a": 1} {"b": 2}]', "expected , or ]"),
            ('[{"a": 1}, {"b": ]', "sample 1: the JSON list is broken: Expecting value"),
            ('[{"a": 1}, {"b": "c', "sample 1: the JSON list is broken: Unterminated string"),
            ('[{"a": 1},', "sample 1: the JSON list is broken: Expecting value"),
            ('[{"a": 1}] {"b": 2}', "something after the end"),
            ("[" + "[" * 100_000, "nested too deeply|Expecting value"),
        ],
    )
    def test_broken_lists(self, tmp_path, text, message):
        path = tmp_path / "data.json"
        path.write_text(text, "utf-8")
        with pytest.raises(ValueError, match=f"data.json.*{message}"):
            read(path)

    def test_bytes_that_are_no_utf8_stay_with_their_sample(self, tmp_path):
        path = tmp_path / "data.json"
        path.write_bytes(b'[{"a": "b"}, {"a": "\xe9"}, {"a": "c"}]')
        ((first, broken, last),) = [chunk.samples for chunk in read_chunks([str(path)])]
        assert (first, broken, last) == (b'{"a": "b"}', b'{"a": "\xe9"}', b'{"a": "c"}')

    def test_memory_does_not_grow_with_the_file(self, tmp_path):
        path = tmp_path / "data.json"
        sample = json.dumps({"messages": [{"role": "user", "content": "x" * 2000}] * 10})
        path.write_text("[" + ",".join([sample] * 3000) + "]", "utf-8")  # 60 MB
        tracemalloc.start()
        number = sum(len(chunk.samples) for chunk in read_chunks([str(path)]))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert number == 3000 and peak < 40 << 20


class TestLines:
    @pytest.mark.usefixtures("block")
    @given(samples=SAMPLES, end=st.sampled_from(["\n", "\r\n", "\n\n"]), last=st.booleans())
    def test_any_lines(self, tmp_path_factory, samples, end, last):
        path = tmp_path_factory.mktemp("lines") / "data.jsonl"
        path.write_bytes((end.join(map(json.dumps, samples)) + end * last).encode())
        assert read(path) == samples

    @pytest.mark.usefixtures("block")
    def test_places_are_lines_from_1(self, tmp_path):
        path = tmp_path / "data.json"
        path.write_text('{"a": 1}\n\n{"a": 2}\nbroken\n{"a": 3}', "utf-8")
        assert places(path) == ["line 1", "line 3", "line 4", "line 5"]

    def test_a_byte_order_mark(self, tmp_path):
        path = tmp_path / "data.jsonl"
        path.write_text('{"a": 1}\n', "utf-8-sig")
        assert read(path) == [{"a": 1}]


class TestFiles:
    def test_several_files_are_named(self, tmp_path):
        for name in "ab":
            (tmp_path / name).write_text('[{"a": 1}]', "utf-8")
        paths = [str(tmp_path / name) for name in "ab"]
        assert [chunk.where(0) for chunk in read_chunks(paths)] == [f"{path}, sample 0" for path in paths]
        assert [chunk.index for chunk in read_chunks(paths)] == [0, 1]

    def test_utf_16_is_named(self, tmp_path):
        path = tmp_path / "data.json"
        path.write_text("[]", "utf-16")
        with pytest.raises(ValueError, match="data.json: is UTF-16; convert it"):
            read(path)

    @pytest.mark.parametrize("text", ["hello", '"text"', "<html>"])
    def test_what_is_no_json(self, tmp_path, text):
        path = tmp_path / "data.json"
        path.write_text(text, "utf-8")
        with pytest.raises(ValueError, match="neither a JSON list nor JSON lines"):
            read(path)

    @pytest.mark.parametrize("text", ["", " \n", "[]", " [ ] "])
    def test_nothing(self, tmp_path, text):
        path = tmp_path / "data.json"
        path.write_text(text, "utf-8")
        assert read(path) == []

    def test_standard_input(self, monkeypatch):
        class Input:
            buffer = io.BytesIO(b'[{"a": 1}]')

        monkeypatch.setattr("sys.stdin", Input)
        assert read("-") == [{"a": 1}]

    def test_parquet(self, tmp_path):
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        path = tmp_path / "data.parquet"
        pq.write_table(pa.table({"a": list(range(2500))}), path)
        chunks = list(read_chunks([str(path)]))
        assert [value for chunk in chunks for value in chunk.samples.to_pydict()["a"]] == list(range(2500))
        assert chunks[1].where(3) == "row 1003"
        path.write_bytes(b"PAR1")
        with pytest.raises(ValueError, match="data.parquet: not a Parquet file"):
            list(read_chunks([str(path)]))
