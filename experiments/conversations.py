"""Episodes as chat messages, as data sets for LLaMA-Factory, and the rules that type them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hsa_factory.whole_files import write_whole

from .environments import Environment
from .episodes import Episode
from .reading import read_json
from .vocabulary import FEEDBACK


Message = dict[str, Any]

PICTURE = "<image>"
TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


def to_messages(episode: Episode) -> list[Message]:
    """Return an episode as messages: the task (system), then observations (user) and actions (assistant) in turns.

    It ends with the last action: what that led to is answered by nobody. Where there are pictures, each observation
    begins with ``<image>``.
    """
    observations = [(episode.observation, episode.picture)]
    observations += [(turn.step.observation, turn.picture) for turn in episode.turns]
    messages = [{"role": "system", "content": episode.task}]
    for (text, picture), turn in zip(observations, episode.turns, strict=False):
        messages.append({"role": "user", "content": text if picture is None else f"{PICTURE}{text}"})
        messages.append({"role": "assistant", "content": turn.action})
    return messages


def feedback_text(reason: str, observation: str) -> str:
    """Return the answer to a mistake: the marker, what was wrong, and what the environment said."""
    return f"{FEEDBACK}{reason} {observation}"


def pictures_of(episode: Episode) -> list[Any]:
    """Return the pictures of `to_messages`, in its order; none in an environment of text alone."""
    pictures = [episode.picture, *(turn.picture for turn in episode.turns[:-1])]
    return [picture for picture in pictures if picture is not None]


def write_dataset(directory: str | Path, name: str, samples: Iterable[Sequence[Message]]) -> Path:
    """Write samples as a data set of LLaMA-Factory, with its entry in ``dataset_info.json``, and return the file.

    Args:
        directory: The ``dataset_dir`` of a training file; made if missing. Other data sets in it stay.
        name: The data set's name.
        samples: Messages of each, as `to_messages` makes them; keys such as ``weight`` may be added.
    """
    return _write(directory, name, [{"messages": list(messages)} for messages in samples], {})


def read_samples(directory: Path, name: str) -> list[list[Message]]:
    """Return the messages of a data set's rows."""
    return [row["messages"] for row in read_json(directory / f"{name}.json")]


def write_episodes(directory: str | Path, name: str, episodes: Iterable[Episode]) -> Path:
    """Write episodes as a data set of LLaMA-Factory, pictures as files beside it, and return the file."""
    rows, columns = [], {}
    for number, episode in enumerate(episodes):
        row: dict[str, Any] = {"messages": to_messages(episode)}
        pictures = pictures_of(episode)
        if pictures:
            columns = {"images": "images"}
            row["images"] = [
                _save_picture(Path(directory) / f"{name}_images" / f"{number}_{turn}.png", picture)
                for turn, picture in enumerate(pictures)
            ]
        rows.append(row)
    return _write(directory, name, rows, columns)


def _save_picture(path: Path, picture: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return str(path.resolve())


def _write(directory: str | Path, name: str, rows: list[dict[str, Any]], columns: Mapping[str, str]) -> Path:
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path, index = directory / f"{name}.json", directory / "dataset_info.json"
    write_whole(path, json.dumps(rows, ensure_ascii=False, indent=1))
    entries = json.loads(index.read_text("utf-8")) if index.exists() else {}
    entries[name] = {
        "file_name": path.name,
        "formatting": "sharegpt",
        "columns": {"messages": "messages", **columns},
        "tags": TAGS,
    }
    write_whole(index, json.dumps(entries, indent=2))
    return path


# -- types -----------------------------------------------------------------------------------------------------


def typing_rules(environment: Environment, lasting: str = "GLOBAL") -> list[dict[str, Any]]:
    """Return the rules for ``hsa: {rules: …}``: task GLOBAL, key events LANDMARK, all else NOISE.

    Args:
        environment: Names its key verbs and which of its answers matter.
        lasting: Type of answers that hold for the whole game, such as the recipe; NOISE makes a case in which they
            are lost.
    """
    verbs = "|".join(environment.key_verbs)
    lasting_rule = {"name": "lasting answer", "role": "user", "pattern": environment.lasting_answers, "type": lasting}
    return [
        {"name": "task", "role": "system", "type": "GLOBAL"},
        *([lasting_rule] if environment.lasting_answers else []),
        {"name": "key action", "role": "assistant", "pattern": rf"(?s)\A(?:{verbs})\b.*", "type": "LANDMARK"},
        {"name": "answer to a key action", "role": "user", "pattern": environment.key_answers, "type": "LANDMARK"},
        {"name": "other action", "role": "assistant", "type": "NOISE"},
        {"name": "other answer", "role": "user", "type": "NOISE"},
    ]
