"""Pictures as people give them, in columns and in parts, and mixed with data sets that have none."""

import base64
import itertools
import json

import pytest

from hsa_factory import HSAConfig
from hsa_factory.llamafactory.data.media_files import MediaError, local_file, shorten


HSA = HSAConfig()


@pytest.fixture(scope="module")
def picture(lf):
    (path,) = lf.images(lf.directory / "a picture #1 é", [(56, 56)])
    return path


def data_uri(path, head="data:image/png;base64,"):
    with open(path, "rb") as file:
        return head + base64.b64encode(file.read()).decode()


def as_url(path):
    from pathlib import Path

    return Path(path).as_uri()


# -- one medium ------------------------------------------------------------------------------------------------


def test_paths_and_file_urls(picture):
    assert local_file(picture, "image") == picture
    assert local_file("images/0.png", "image") == "images/0.png"
    assert local_file("C:\\images\\0.png", "image") == "C:\\images\\0.png"
    assert local_file(as_url(picture), "image") == local_file(as_url(picture).replace("//", "//localhost", 1), "image")
    assert local_file(as_url(picture), "image") == picture
    with pytest.raises(MediaError, match="another machine \\(server\\)"):
        local_file("file://server/a.png", "image")


@pytest.mark.parametrize("head", ["data:image/png;base64,", "DATA:image/png;charset=x;BASE64,", "data:;base64,"])
def test_data_uris_become_files_once(picture, tmp_path, head):
    with open(picture, "rb") as file:
        content = file.read()
    uri = data_uri(picture, head)
    path = local_file(uri, "image", True, str(tmp_path))
    with open(path, "rb") as file:
        assert file.read() == content
    wrapped = uri[:60] + "\n" + uri[60:90] + "%0A" + uri[90:].replace("+", "%2B")
    assert local_file(wrapped, "image", True, str(tmp_path)) == path
    assert local_file([uri, wrapped], "video", True, str(tmp_path)) == [path, path]
    assert [file.is_file() for file in (tmp_path / "hsa_factory" / "media").iterdir()] == [True]


def test_other_media_in_data_uris(tmp_path):
    for kind, head in (("audio", "data:audio/wav;base64,"), ("video", "data:video/mp4;base64,")):
        path = local_file(head + base64.b64encode(b"RIFF").decode(), kind, True, str(tmp_path))
        with open(path, "rb") as file:
            assert file.read() == b"RIFF" and path.endswith((".wav", ".mp4"))


def test_sound_in_a_part(tmp_path):
    from hsa_factory.labeling.parts import join_parts

    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}}
    ((place, kind, file),) = join_parts(["hear: ", part]).media
    with open(local_file(file, kind, True, str(tmp_path)), "rb") as sound:
        assert (place, kind, sound.read()) == (6, "audio", b"RIFF")


@pytest.mark.parametrize(
    ("medium", "message"),
    [
        ("https://example.com/a.png", "image 'https://example.com/a.png' is not on this machine"),
        ("HTTP://example.com/" + "a" * 4_000_000, "not on this machine"),
        ("s3://bucket/a.png", "not on this machine"),
        ("data:image/png;base64," + "AAAA" * 1_000_000, "no picture that Pillow can read"),
        ("data:image/png;base64," + "AAAA" * 1_000_000 + "A", "not valid base64"),
        ("data:image/png;base64,@@@@", "not valid base64"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64", "comma"),
        ("data:image/jpeg;base64,/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA==", "the picture in it is broken .*cut off"),
        ("/9j/" + "AAAA" * 1_000_000, "too long for a path.*write `data:image/"),
    ],
)
def test_what_is_no_file_is_refused_in_a_few_words(medium, message, tmp_path):
    with pytest.raises(MediaError, match=message) as error:
        local_file(medium, "image", True, str(tmp_path))
    assert len(str(error.value)) < 300


def test_what_is_no_text_stays(picture):
    assert (
        local_file({"url": as_url(picture)}, "image")
        == local_file({"path": picture, "bytes": None}, "image")
        == picture
    )
    for medium in (b"bytes", None, 3, {"bytes": b"x"}):
        assert local_file(medium, "image") is medium
    struct = {"path": "a.png", "bytes": None}
    assert local_file(struct, "image", is_path=False) is struct
    assert shorten({"bytes": "A" * 10_000}).endswith("(10,013 characters)")


# -- in a run --------------------------------------------------------------------------------------------------


def entry(lf, *columns):
    return {"formatting": "sharegpt", "columns": {name: name for name in ("messages", *columns)}, "tags": lf.TAGS}


def talk(lf, content, **columns):
    return {"messages": [lf.say("user", content), lf.say("assistant", "<m1>")], **columns}


def vision_args(lf, directory, names, **more):
    return lf.args(directory, names, lf.model_dir("qwen2_5_vl"), template="qwen2_vl", **more)


def test_the_same_picture_in_all_ways(lf, tmp_path, picture):
    given = {"path": picture, "url": as_url(picture), "data": data_uri(picture), "object": {"url": data_uri(picture)}}
    sets = {
        f"column_{name}": (entry(lf, "images"), [talk(lf, "<image><m0>", images=[x])]) for name, x in given.items()
    }
    sets["single"] = (entry(lf, "images"), [talk(lf, "<image><m0>", images=given["data"])])
    for name, x in given.items():
        parts = [{"type": "image_url", "image_url": x}, {"type": "text", "text": "<m0>"}]
        sets[f"part_{name}"] = (entry(lf), [talk(lf, parts)])
    lf.write_data(tmp_path, **sets)
    prepared = lf.prepare(vision_args(lf, tmp_path, ",".join(sets)), HSA)
    rows = prepared.rows()
    assert len(rows) == len(sets) and all(row["input_ids"] == rows[0]["input_ids"] for row in rows)
    batch = lf.collator(prepared, HSA)([dict(row) for row in rows])
    pixels = batch["pixel_values"].chunk(len(rows))
    assert all(pixel.equal(pixels[0]) for pixel in pixels) and float(pixels[0].abs().max()) > 0


@pytest.mark.parametrize("place", ["column", "part"])
def test_a_picture_elsewhere_is_refused_with_data_set_and_sample(lf, tmp_path, picture, place):
    url = "https://example.com/a.png"
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    bad = talk(lf, "<image>", images=[url]) if place == "column" else talk(lf, parts, images=None)
    lf.write_data(tmp_path, photos=(entry(lf, "images"), [talk(lf, "<image>", images=[picture]), bad]))
    with pytest.raises(
        ValueError, match=r"dataset 'photos', sample 1.*image 'https://example.com/a.png' is not on this"
    ):
        lf.prepare(vision_args(lf, tmp_path, "photos"), HSA)


def test_no_megabytes_in_the_message_of_a_run(lf, tmp_path, picture):
    uri = data_uri(picture)
    samples = [
        talk(lf, "<image>", images=[uri + "A" * 1_000_001]),
        talk(lf, "<image>", images=[{"bytes": uri * 1000}]),
        talk(lf, "<image>", images=[uri * 1000]),
        talk(lf, [{"type": "picture", "picture": uri * 1000}], images=None),
    ]
    for number, sample in enumerate(samples):
        lf.write_data(tmp_path, **{f"photos{number}": (entry(lf, "images"), [sample])})
        with pytest.raises(ValueError, match=f"dataset 'photos{number}', sample 0") as error:
            lf.prepare(vision_args(lf, tmp_path, f"photos{number}"), HSA)
        assert len(str(error.value)) < 500


# -- data sets with and without media --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(lf, picture):
    """Text, a picture after a thousand texts, one in a part, pictures inside Parquet, frames of a video."""
    import datasets

    directory = lf.directory / "mixed"
    texts = [talk(lf, "<m0>")] * 3
    part = talk(lf, [{"type": "image", "image": picture}, "<m0>"])
    lf.write_data(
        directory,
        text=(entry(lf), texts),
        late=(entry(lf, "images"), [talk(lf, "<m0>")] * 1001 + [talk(lf, "<image>", images=[picture])]),
        part=(entry(lf), [*texts, part]),
        few=(entry(lf, "images"), [talk(lf, "<m0>"), talk(lf, "<image>", images=[picture])]),
        frames=(entry(lf, "videos"), [talk(lf, "<m0>"), talk(lf, "<video>", videos=[[picture, picture]])]),
    )
    message = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    features = datasets.Features({"messages": datasets.List(message), "images": datasets.List(datasets.Image())})
    rows = [{**talk(lf, "<m0>"), "images": []}, talk(lf, "<image>", images=[picture])]
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(directory / "inside.parquet"))
    info = json.loads((directory / "dataset_info.json").read_text("utf-8"))
    info["inside"] = {"file_name": "inside.parquet", **entry(lf, "images")}
    (directory / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    return directory


def with_media(rows):
    return [row for row in itertools.islice(rows, 2000) if row["images"] or row["videos"]]


@pytest.mark.parametrize(
    ("names", "options", "media"),
    [
        ("text,few", {}, 1),
        ("late,text", {"preprocessing_batch_size": 1000}, 1),
        ("text,part", {"preprocessing_num_workers": 2}, 1),
        ("text,few", {"streaming": True, "dataloader_num_workers": 1}, 1),
        ("text,few", {"packing": True, "neat_packing": True}, 1),
        ("text,inside", {}, 1),
        ("few,inside,text", {}, 2),
        ("text,frames,few", {}, 2),
    ],
)
def test_data_sets_with_and_without_media_mix(lf, mixed, names, options, media):
    """Whatever comes first, after more samples than column types are guessed from: a batch, or a thousand."""
    options = {"preprocessing_batch_size": 2, **options}
    if "streaming" not in options:
        options |= {"eval_dataset": "few", "do_eval": True}
    prepared = lf.prepare(vision_args(lf, mixed, names, **options), HSA)
    rows = with_media(prepared.module["train_dataset"])
    assert len(rows) == media
    assert len(with_media(prepared.module.get("eval_dataset", []))) == ("streaming" not in options)
    for row in rows:
        batch = lf.collator(prepared, HSA)([dict(row)])
        assert "pixel_values" in batch or "pixel_values_videos" in batch


def test_frames_and_files_in_one_data_set_are_named(lf, tmp_path, picture):
    samples = [talk(lf, "<video>", videos=[[picture] * 2]), talk(lf, "<video>", videos=[picture])]
    lf.write_data(tmp_path, clips=(entry(lf, "videos"), samples))
    with pytest.raises(ValueError, match="dataset 'clips', sample 1: video .*list of frames"):
        lf.prepare(vision_args(lf, tmp_path, "clips"), HSA)
