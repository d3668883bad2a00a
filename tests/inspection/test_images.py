"""The pictures of a page: each is its own, and each once."""

import io

from PIL import Image

from hsa_factory.inspection.images import ImageStore


def picture(shade, size=(8, 8)):
    data = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 255 - shade)).save(data, "PNG")
    return data.getvalue()


def test_pictures_that_are_gone_lend_their_number_to_no_other():
    """Samples are shown one after the other: what they held is freed, and the next stands at the same address."""
    store = ImageStore()
    numbers = [store.add({"bytes": picture(shade), "path": None}) for shade in range(0, 250, 10)]
    assert numbers == list(range(25)) and len(set(store.uris)) == 25


def test_a_picture_stands_there_once_however_it_comes(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(picture(7))
    store = ImageStore()
    sources = [str(path), {"path": str(path), "bytes": None}, picture(7), Image.open(path), str(path)]
    assert [store.add(source) for source in sources] == [0] * 5 and len(store.uris) == 1


def test_what_cannot_be_shown_has_no_number(tmp_path):
    store = ImageStore()
    missing = [str(tmp_path / "missing.png"), b"no picture", {"bytes": None, "path": None}, None, "https://host/a.png"]
    assert [store.add(source) for source in [*missing, *missing]] == [None] * 10 and store.uris == []
