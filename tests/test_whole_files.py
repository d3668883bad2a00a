"""Files that are replaced whole or not at all."""

import contextlib
import os

import pytest

from hsa_factory.whole_files import whole_file, write_whole


@pytest.mark.parametrize(
    ("content", "expected"), [("ü\n苹果", "ü\n苹果".encode()), (b"\xff\x00\r\n", b"\xff\x00\r\n")]
)
def test_texts_and_bytes_with_a_directory_that_is_missing(tmp_path, content, expected):
    path = tmp_path / "a" / "b" / "file"
    write_whole(path, content)
    assert path.read_bytes() == expected
    write_whole(str(path), content[:1])
    assert path.read_bytes() == (content[:1].encode() if isinstance(content, str) else content[:1])
    assert os.listdir(path.parent) == ["file"]


def test_a_write_that_dies_leaves_the_former_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, "former")

    def full_disk(number):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "former" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_changes_nothing(tmp_path, error):
    path = tmp_path / "file"
    with pytest.raises(error):
        with whole_file(path) as temporary:
            temporary.write_text("half")
            assert temporary.parent == tmp_path and str(os.getpid()) in temporary.name and not path.exists()
            raise error
    assert os.listdir(tmp_path) == []


def test_a_reader_never_sees_a_part(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "former")
    with whole_file(path) as temporary, open(temporary, "w") as file:
        file.write("n")
        file.flush()
        assert path.read_text() == "former"
        file.write("ew")
    assert path.read_text() == "new"


@pytest.mark.parametrize("fails", [False, True])
def test_a_temporary_file_in_another_place(tmp_path, fails):
    path, temporary = tmp_path / "file", tmp_path / "partial" / "result"
    temporary.parent.mkdir()
    write_whole(path, "former")
    with pytest.raises(KeyboardInterrupt) if fails else contextlib.nullcontext():
        with whole_file(path, temporary) as place:
            assert place == temporary
            place.write_text("new")
            if fails:
                raise KeyboardInterrupt
    assert path.read_text() == ("former" if fails else "new")
    assert os.listdir(temporary.parent) == [] and sorted(os.listdir(tmp_path)) == ["file", "partial"]
