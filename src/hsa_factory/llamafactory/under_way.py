"""When a run of LLaMA-Factory is set up and its work begins: from then on an error keeps its traceback."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import llamafactory.chat.chat_model
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..user_errors import run_begins
from .seams import Seam, installed


class BeginningCallback(TrainerCallback):
    """Tells of the first training step; without training, of a trainer that is ready to evaluate or to predict."""

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Run when a trainer has been made: model and data are there."""
        if not args.do_train:
            run_begins()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Run before the first step, after a checkpoint to resume from has been looked at."""
        run_begins()


def first_answer_begins() -> AbstractContextManager[None]:
    """Let the first answer of a chat begin the run, for the duration of a `with` block."""
    return installed([Seam(llamafactory.chat.chat_model.ChatModel, "stream_chat", _stream_chat)])


def _stream_chat(original: Any, *args: Any, **kwargs: Any) -> Iterator[str]:
    run_begins()
    return original(*args, **kwargs)
