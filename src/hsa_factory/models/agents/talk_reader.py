"""What rows are given as chat messages: the whole conversation by the template, of which only the end is new."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ...config import HSAConfig
from ...labeling.rule_set import RuleSet
from .row import Row
from .talk import Talk, encode_talk, new_talk, read_messages


if TYPE_CHECKING:
    from ...training.history import History

READ_AGAIN = "read_again"


class Continued(NamedTuple):
    """A row's conversation with what is new.

    Attributes:
        talk: Its messages.
        history: Its tokens.
        rewritten: Why the model has read something else; None: it goes on.
    """

    talk: Talk
    history: "History"
    rewritten: str | None


class TalkReader:
    """Turns chat messages into tokens with types.

    Args:
        tokenizer: Of the model, with a chat template.
        config: Default type, and whether there are turns.
        rules: Those that hold before a conversation has ended; None: there are none.
    """

    def __init__(self, tokenizer: Any, config: HSAConfig, rules: RuleSet | None) -> None:
        self._tokenizer, self._config = tokenizer, replace(config, rules=rules)

    def read(self, row: Row, given: Any, tools: Any = None, options: Mapping[str, Any] | None = None) -> Continued:
        """Return a row's conversation with what it is given.

        Args:
            row: The row.
            given: A message, or a list of them; None: nothing.
            tools: As `apply_chat_template`; None: as before.
            options: What the template reads; None or none: as before.

        Raises:
            ValueError: If something cannot be read; names the row and the message.
        """
        if row.talk is None and row.ids:
            raise ValueError(
                f"row {row.number}: it was given texts by append(), which no template has written. start({row.number}) begins an "
                "episode of chat messages."
            )
        messages = [] if given is None else read_messages(row.number, given)
        talk = row.talk
        if talk is None or tools is not None or options:
            try:
                fresh = new_talk(self._tokenizer, tools, options or {})
            except ValueError as error:
                raise ValueError(f"row {row.number}: {error}") from error
            talk = fresh if talk is None else replace(talk, template=fresh.template)
        try:
            longer = talk.with_news(messages)
            history = encode_talk(longer, self._config)
        except ValueError as error:
            raise ValueError(f"row {row.number}: {error}") from error
        return Continued(longer, history, self._find_rewritten(row, history))

    def _find_rewritten(self, row: Row, history: "History") -> str | None:
        was, now = row.ids[: row.read], history.ids[: row.read]
        if was == now:
            same_turns = not self._config.has_turns or row.turns[: row.read] == history.turns[: row.read]
            return (
                None
                if same_turns
                else f"row {row.number}: its messages are of other turns than the model has read them with."
            )
        place = next((n for n, (old, new) in enumerate(zip(was, now)) if old != new), len(now))
        texts = [
            self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for ids in (row.ids[place : row.read], history.ids[place:])
        ]
        owner = history.owners[min(place, len(history.owners) - 1)]
        is_spelling = texts[0][:200] == texts[1][: len(texts[0])][:200]
        reason = (
            "the model has written this text with other tokens than the tokenizer would"
            if is_spelling
            else "as templates do that leave out earlier thinking, or trim replies"
        )
        return (
            f"row {row.number}, message {owner} ({history.roles[owner]}): the chat template writes it otherwise than the model has "
            f"read it ({reason}): {texts[0][:40]!r} is now {texts[1][:40]!r}."
        )
