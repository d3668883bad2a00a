"""The columns of converted samples, with their types given: those guessed from the first samples need not fit the later.

A column that is empty in the first thousand samples is taken for one without values, and the first picture, tool or system
prompt after them stops the run.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Features, List, Value
from datasets.features.features import encode_nested_example

from .template import ALWAYS_KEY, TURN_KEY, TYPE_KEY, WEIGHT_KEY


INDEX_COLUMN = "_hsa_index"  # the sample's number in its data set, before and after conversion
SOURCE_COLUMN = "_hsa_dataset"
SYSTEM_TYPE_COLUMN = "_hsa_system_type"
SYSTEM_SPANS_COLUMN = "_hsa_system_spans"
TYPED_COLUMN = "_hsa_typed_messages"
RULES_COLUMN = "_hsa_rules"
SPANS_KEY = "spans"  # of a converted message
MEDIA_COLUMNS = ("_images", "_videos", "_audios")

_MESSAGES = List(
    {
        "role": Value("string"),
        "content": Value("string"),
        WEIGHT_KEY: Value("float64"),
        ALWAYS_KEY: Value("bool"),
        TURN_KEY: Value("int64"),
        TYPE_KEY: Value("int64"),
        SPANS_KEY: Value("string"),
    }
)
_COLUMNS = {
    "_prompt": _MESSAGES,
    "_response": _MESSAGES,
    "_system": Value("string"),
    "_tools": Value("string"),
    SYSTEM_TYPE_COLUMN: Value("int64"),
    SYSTEM_SPANS_COLUMN: Value("string"),
    TYPED_COLUMN: Value("int64"),
    RULES_COLUMN: Value("string"),
    SOURCE_COLUMN: Value("string"),
    INDEX_COLUMN: Value("int64"),
}
_PATHS = List(Value("string"))
_FRAMES = List(List(Value("string")))


def aligned_features(media: dict[str, Any]) -> Features:
    """Return the types of a converted data set's columns.

    Args:
        media: Types of its media columns, as `media_features` returns them.
    """
    return Features({**_COLUMNS, **media})


def media_features(dataset: Any, attributes: Any, samples: Iterator[dict[Any, Any]] | None) -> dict[str, Any]:
    """Return the types of a data set's media columns once it is converted.

    Args:
        dataset: Before it is converted.
        attributes: LLaMA-Factory's `DatasetAttr`, which names the columns.
        samples: Its samples, if it comes from JSON: media are paths then, and videos may be lists of frames. None: the
            types are those of the data set's own columns.
    """
    columns = {name: getattr(attributes, name[1:]) for name in MEDIA_COLUMNS}
    if samples is not None:
        return {**dict.fromkeys(MEDIA_COLUMNS, _PATHS), "_videos": _video_type(samples, columns["_videos"])}
    features = dataset.features or {}
    return {name: _as_list_type(features.get(column) if column else None) for name, column in columns.items()}


def _video_type(samples: Iterator[dict[Any, Any]], column: str | None) -> List:
    """Look for the first video: samples are parsed until one has any."""
    for sample in samples if column else ():
        videos = sample.get(column)
        if isinstance(videos, list) and videos:
            return _FRAMES if isinstance(videos[0], list) else _PATHS
    return _PATHS


def _as_list_type(feature: Any) -> Any:
    """Return the type of a list of media, of which a data set's column may hold only one."""
    if feature in (None, Value("null")) or getattr(feature, "feature", None) == Value("null"):
        return _PATHS
    return feature if isinstance(feature, List) else List(feature)


def are_paths(media: dict[str, Any]) -> bool:
    """Whether all media of a data set are paths, or lists of frames that are."""
    return all(feature in (_PATHS, _FRAMES) for feature in media.values())


def has_frames(media: dict[str, Any]) -> bool:
    """Whether the videos of a data set are lists of frames."""
    return bool(media["_videos"] == _FRAMES)


class WithFeatures:
    """A data set whose `map` is told the types of its result; all that LLaMA-Factory's `align_dataset` uses of one."""

    def __init__(self, dataset: Any, features: Features) -> None:
        self.dataset, self.features = dataset, features

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.dataset)

    def map(self, *args: Any, **kwargs: Any) -> Any:
        """Call the data set's own `map`."""
        return self.dataset.map(*args, features=self.features, **kwargs)


def with_same_media(datasets: Sequence[Any]) -> list[Any]:
    """Return converted data sets whose media columns have the same types, so that they can be mixed.

    Paths become the pictures that another data set holds itself; where there are no media, there is nothing to change.
    """
    result = list(datasets)
    for column in MEDIA_COLUMNS:
        kinds = [(dataset.features or {}).get(column) for dataset in result]
        if None in kinds:  # a stream of unknown types, or another converter's data set
            continue
        target = next((kind for kind in kinds if kind != _PATHS), _PATHS)
        result = [
            dataset if kind != _PATHS or target == _PATHS else _retype(dataset, column, target)
            for dataset, kind in zip(result, kinds)
        ]
    return result


def _retype(dataset: Any, column: str, feature: Any) -> Any:
    table = getattr(dataset, "data", None)
    if table is None or table.column(column).null_count < len(table):
        return dataset.cast_column(column, feature)
    return dataset.remove_columns(column).add_column(column, [None] * len(dataset), feature=feature)


def row_media(dataset: Any) -> dict[str, Any]:
    """Return the types that the media columns of tokenized rows have, by name: those of the converted data set.

    Args:
        dataset: Converted; None, or a stream whose types are not known: there are none.
    """
    features = getattr(dataset, "features", None) or {}
    return {name[1:]: features[name] for name in MEDIA_COLUMNS if name in features}


def has_weights(dataset: Any) -> bool | None:
    """Return whether a message of a converted data set has a weight besides 0 and 1; None: not known, it is a stream."""
    table = getattr(dataset, "data", None)
    if table is None:
        return None
    for name in ("_prompt", "_response"):
        for chunk in table.column(name).chunks if name in table.column_names else ():
            messages = chunk.values
            if pa.types.is_struct(messages.type) and messages.type.get_field_index(WEIGHT_KEY) >= 0:
                if not {None, 0.0, 1.0}.issuperset(pc.unique(messages.field(WEIGHT_KEY)).to_pylist()):
                    return True
    return False


def to_arrow(values: list[Any], feature: Any) -> pa.Array:
    """Return media as Arrow holds them, pictures as files."""
    schema = Features({"media": feature}).arrow_schema
    encoded = [encode_nested_example(feature, value) if value is not None else None for value in values]
    return pa.array(encoded, schema.field("media").type)
