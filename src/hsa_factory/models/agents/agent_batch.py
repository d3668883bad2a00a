"""An agent loop in five lines: observations in, actions out, on one cache that lives as long as the episodes."""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...labeling.rule_set import RuleSet
from ..cache.tagger import ConstantTagger
from ..enable import get_state
from ..generation.generate import generation_lock
from ..generation.rule_tagger import RuleTagger, make_tagger
from ..rope_positions import own_rope_deltas
from ..text_model import unwrap
from .checks import TokenCheck, check_generation_config, read_choices
from .new_images import lacks_pixels, read_images, without_pixels
from .observations import ObservationReader, Types, parse, spread, spread_types, without_ends
from .reply import Reply
from .reply_writer import ReplyWriter, find_stops
from .report import AgentReport, RowReport, Usage, mean
from .row import Row
from .sampling import Processor, Sampler
from .shared_cache import SharedCache
from .talk_reader import READ_AGAIN, TalkReader


class AgentBatch:
    r"""Plays many episodes side by side: a row an episode, all on one `HSACache`.

    Only what is new is read, positions count a row's own tokens, and keys leave as HSA allows, so that each row writes what
    `model.generate` would write for its whole history alone, with the same types. A token's type may be known after it: a
    reply is typed by the configuration's rules (else as `generated_type`) while it is written, and finally when it has ended;
    until then its keys stay. Turn numbers (`*_turns`) count by themselves: up by one with the first observation after a reply.

    Each token that is generated costs one forward over the rows that play; a finished row costs nothing more.

    Args:
        model: With HSA on (`enable_hsa`); with all types GLOBAL it attends as without. Softmax attention in all layers.
        tokenizer: Of the model, or a processor that has one: chat messages may then hold images. Texts are encoded as they
            are: no special token is added.
        rows: How many episodes there are side by side. All may be given something at once; `start` begins another in one.
        max_new_tokens: Of a reply.
        header: Text or ids that begin each reply, such as ``"<|im_start|>assistant\n"``: of the reply's type and turn.
        footer: What follows each reply, such as ``"<|im_end|>\n"``, likewise; the stop token that the model has written
            counts as its beginning.
        stop: Tokens that end a reply, by id or name; None: those of the model's generation configuration and tokenizer.
        temperature: 0: greedy, whatever the generation configuration says.
        top_k: Draw from the k likeliest; None: from all.
        top_p: Draw from the likeliest that together have this probability; None: from all.
        seed: Of the random numbers; each episode has its own, so that it does not depend on its neighbours.
        logits_processor: Callables of ids (B, n) and scores (B, V), as transformers' `LogitsProcessor`; the ids are those of
            the replies under way, a batch's rows in any order.
        max_waiting: How many columns of keys that nobody needs may wait; they go together.

    Raises:
        ValueError: If the model has no HSA, or layers of other kinds; or an option is not allowed.

    Example:
        >>> agents = AgentBatch(model, tokenizer, rows=2, max_new_tokens=12)
        >>> agents.append(["You are in a kitchen. Goal: eat.\n> ", "You are in a hall. Goal: leave.\n> "], "GLOBAL")
        >>> while agents.live:
        ...     actions = agents.act()
        ...     agents.append({row: env[row].step(actions[row]) for row in agents.live}, "NOISE")
        ...     agents.finish([row for row in agents.live if env[row].done])
        >>> agents.report().peak_held
        212
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        rows: int = 64,
        max_new_tokens: int = 64,
        header: str | Sequence[int] = (),
        footer: str | Sequence[int] = (),
        stop: Iterable[int | str] | int | str | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        logits_processor: Sequence[Processor] = (),
        max_waiting: int = 64,
    ) -> None:
        for name, value in (("rows", rows), ("max_new_tokens", max_new_tokens), ("max_waiting", max_waiting)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"AgentBatch: {name} = {value!r} is not allowed: a whole number ≥ 1.")
        state = get_state(model)
        if state is None or not state.is_on:
            raise ValueError(
                f"AgentBatch: {type(model).__name__} has no HSA: call enable_hsa(model, HSAConfig()) first. With all types "
                "GLOBAL, its default, the model then attends as it does without."
            )
        if state.is_hybrid:
            raise ValueError(
                f"AgentBatch: {state.model_name} has layers without softmax attention, which cannot leave padding out or begin "
                "anew in one row: call model.generate with an HSACache for each episode."
            )
        handler = tokenizer
        if not isinstance(handler, PreTrainedTokenizerBase):  # some tokenizers have a `tokenizer` as well
            tokenizer = getattr(handler, "tokenizer", handler)
        self.model, self.tokenizer, self.config, self._state = model, tokenizer, state.config, state
        self.max_new_tokens, self.seed, self._entry = max_new_tokens, seed, unwrap(model).base_model
        check_generation_config(getattr(model, "generation_config", None))
        sampler = Sampler(temperature, top_k, top_p, logits_processor)
        self._writer = ReplyWriter(
            tokenizer, sampler, max_new_tokens, header, footer, find_stops(model, tokenizer, stop)
        )
        self._shared = SharedCache(model, state, max_waiting, self._writer.filler)
        rules = None if state.config.rules is None else RuleSet.parse(state.config.rules)
        before_the_end = None if rules is None else without_ends(rules)
        self._reader = ObservationReader(tokenizer, state.config, before_the_end)
        self._talks, self._tokens = TalkReader(handler, state.config, before_the_end), TokenCheck(model)
        self._counts_turns = rules is not None and any(rule.turn for rule in rules)
        self._begun = self._generated = 0
        self._past, self._past_fed = Usage(), 0  # of episodes whose rows have begun anew
        self._rows = [self._new_row(number) for number in range(rows)]

    @property
    def live(self) -> list[int]:
        """The rows that play, in order: those that are not finished."""
        return [row.number for row in self._rows if row.is_live]

    def start(
        self, row: int, observation: Any = None, types: Types = None, role: str = "user", seed: Any = None
    ) -> None:
        """Begin a new episode in a row; what stood in it is forgotten.

        Args:
            row: Its number.
            observation: The first thing to read; None: `append` follows.
            types: As `append`.
            role: As `append`.
            seed: Of the episode's random numbers, such as the game's name; None: how many episodes have begun before.
        """
        self._check_row(row)
        self._forget(self._rows[row])
        self._rows[row] = self._new_row(row, seed)
        if observation is not None:
            self.append({row: observation}, {row: types}, role)

    def append(self, observations: Any, types: Types = None, role: str = "user") -> None:
        """Give rows something to read; several times in a row is as good as at once.

        Args:
            observations: For each row a text, or ids (a list or a tensor of one dimension); None: nothing. Or a mapping from
                row to that.
            types: A type by name or number, for all rows; or for each row (a list of as many as there are rows, or a mapping)
                a type, one for each of its tokens, or None: as the configuration's rules type a message of this role and text,
                else the default type. A `TypedText` brings its own.
            role: Of the messages that these are, for rules.

        Raises:
            ValueError: If something does not fit, or a row is finished; names the row. Then nothing is appended.
        """
        live = self.live
        given = spread("observations", observations, live, len(self._rows))
        kinds = spread_types(types, list(given), len(self._rows))
        roles = {row: self._rows[row].roles for row in given}
        for row in given:
            if self._rows[row].talk is not None:
                raise ValueError(f"row {row}: it is an episode of chat messages: go on with append_messages().")
        read = self._reader.read({row: (value, kinds[row]) for row, value in given.items()}, role, roles)
        for row, (ids, _) in read.items():
            self._tokens.check(row, ids)
        for row, (ids, semantic_ids) in read.items():
            self._rows[row].observe(ids, semantic_ids, role)

    def append_messages(
        self, messages: Any, tools: Any = None, rewritten: str = "error", **chat_template_kwargs: Any
    ) -> None:
        """Give rows chat messages to read: the chat template writes them, and each reply's header and end.

        A row's tokens are those of `apply_chat_template` for its whole conversation, replies included, with
        ``add_generation_prompt=True``, which is checked each time; types and turns are those of `encode_conversation`.

        Args:
            messages: For each row (as `append`) a message, or a list of them, as `apply_chat_template` takes them, with images
                where a processor was given; each may have a `semantic_type`, else the configuration's rules type it. Replies
                are not given: `act` adds them.
            tools: JSON schemas, functions, or the JSON text of a list of schemas; None: as before in this episode.
            rewritten: What to do if the template now writes otherwise what the model has read (without earlier thinking, for
                example), or the tokenizer spells a reply in other tokens than the model has: ``error``, or ``read_again``:
                the row's whole conversation is read anew, as it is now.
            **chat_template_kwargs: What the template reads (``enable_thinking``, …); none: as before in this episode.

        Raises:
            ValueError: If a message cannot be read, or is rewritten; names the row and the message. Then nothing is appended.
        """
        if rewritten not in ("error", READ_AGAIN):
            raise ValueError(f"rewritten = {rewritten!r} is not allowed: 'error' or {READ_AGAIN!r}.")
        given = spread("messages", messages, self.live, len(self._rows))
        read = {
            row: self._talks.read(self._rows[row], value, tools, chat_template_kwargs) for row, value in given.items()
        }
        hint = f"Pass rewritten={READ_AGAIN!r}, by which the row's conversation is read anew, or use a template that keeps it."
        images = {row: read_images(row, self._entry, history.columns) for row, (_, history, _) in read.items()}
        for row, (_, history, why) in read.items():
            self._tokens.check(row, [*history.ids, *history.header], has_images=bool(images[row]))
            if why is not None and rewritten == "error":
                raise ValueError(f"{why} {hint}")
        is_anew = {row: why is not None for row, (_, _, why) in read.items()}
        for row, (_, history, _) in read.items():
            try:
                if not is_anew[row]:
                    self._retype(self._rows[row], history.types)
            except ValueError as error:
                if rewritten == "error":
                    raise ValueError(f"{error} {hint}") from error
                is_anew[row] = True
        for row, (talk, history, _) in read.items():
            if is_anew[row]:
                self._rows[row] = self._rows[row].begin_anew()
            self._rows[row].talk, self._rows[row].has_news = talk, True
            self._rows[row].follow(history)
            self._rows[row].images = images[row]

    def messages(self, row: int) -> list[dict[str, Any]]:
        """Return the chat messages of a row so far, its replies included; none if it was given texts."""
        self._check_row(row)
        talk = self._rows[row].talk
        return [] if talk is None else [dict(message) for message in talk.messages]

    def act(self, choices: Any = None, types: Types = None) -> list[Reply | None]:
        """Let each row that was given something since its last reply write one.

        Args:
            choices: For each row (as `observations`) the texts of which its reply must be one; None: anything.
            types: Type of the replies, for all rows or for each; None: by the configuration's rules, else `generated_type`.

        Returns:
            A `Reply` for each row: a text with `ids`, `semantic_ids` and `is_complete`. None: the row had nothing to answer.

        Raises:
            ValueError: If no row has anything to answer, or a row's history and reply are longer than the model has positions.

        An `act` that fails or is interrupted, by too little memory for example, changes nothing: the cache is emptied, and
        the next one reads the histories again. (Finish rows before, or give the batch fewer.)
        """
        acting = [row for row in self._rows if row.is_live and row.has_news]
        if not acting:
            raise ValueError("act(): no row has anything to answer. Call append(observations) first.")
        self._check_lengths(acting)
        wanted = spread("choices", choices, self.live, len(self._rows)) if choices is not None else {}
        options = read_choices(self.tokenizer, wanted, self.max_new_tokens)
        kinds = {
            row: parse(row, kind)
            for row, kind in spread_types(types, self.live, len(self._rows)).items()
            if kind is not None
        }
        self._take_images_again()
        before = [(row, row.save()) for row in self._rows]
        try:
            self._shared.arrange([row for row in self._rows if row.is_live and row.ids])
            with generation_lock(self._state), own_rope_deltas(self._entry):
                replies = self._writer.write(self._shared, self._taggers(self._shared.rows, kinds), options)
        except BaseException:
            self._shared.forget()
            for row, saved in before:
                row.go_back(saved)
            raise
        for row in self._shared.rows:
            row.images = without_pixels(row.images)
        for row in acting:
            if row.talk is not None:
                row.talk.reply(replies[row.number], kinds.get(row.number))
        self._generated += sum(len(reply.ids) + reply.is_complete for reply in replies.values())
        return [replies.get(row.number) for row in self._rows]

    def finish(self, rows: int | Iterable[int]) -> None:
        """End the episodes of some rows: they leave the cache, and cost nothing more."""
        chosen = [rows] if isinstance(rows, int) else list(rows)
        for row in chosen:
            self._check_row(row)
        for row in chosen:
            self._rows[row].is_live = self._rows[row].has_news = False

    def retype(self, row: int, start: int, stop: int, semantic_type: int | str) -> None:
        """Change the type of tokens of a row's history.

        Args:
            row: Its number.
            start: Place of the first in `history`.
            stop: After the last.
            semantic_type: The new type.

        Raises:
            ValueError: If a key is gone that could be seen with the new type; the places are none of the history; or the row
                is an episode of chat messages, which have their own.
        """
        self._check_row(row)
        types = list(self._rows[row].types)
        if self._rows[row].talk is not None:
            raise ValueError(f"row {row}: it is an episode of chat messages: give a message its semantic_type.")
        if not 0 <= start <= stop <= len(types):
            raise ValueError(f"row {row}: {start} to {stop} are no places of its history of {len(types)} tokens.")
        types[start:stop] = [parse(row, semantic_type)] * (stop - start)
        self._retype(self._rows[row], types)

    def history(self, row: int) -> dict[str, list[int]]:
        """Return a row's tokens so far, `input_ids`, with their `semantic_ids` and `turn_ids`, as `model.generate` takes them.

        In an episode of chat messages they are those of `encode_conversation`, with what the template writes after the last
        reply; if it does not write the replies as the model did, they are what the model has read and written.
        """
        self._check_row(row)
        known = self._rows[row]
        if known.talk is not None and not known.has_news:
            _, history, why = self._talks.read(known, None)
            if why is None:
                self._retype(known, history.types)
                known.follow(history)
        return {"input_ids": list(known.ids), "semantic_ids": list(known.types), "turn_ids": list(known.turns)}

    def report(self) -> AgentReport:
        """Return what the rows hold, and what it has cost so far."""
        live, total, cache = [row for row in self._rows if row.is_live], Usage(), self._shared.cache
        for usage in (self._past, *(row.usage for row in self._rows)):
            total.add(usage)
        held, visible = (sum(getattr(row.usage, name) for row in live) for name in ("held", "visible"))
        return AgentReport(
            live=len(live),
            held=held,
            visible=visible,
            waiting=held - visible,
            mean_held=mean(total.held_sum, total.forwards),
            peak_held=total.held_peak,
            mean_visible=mean(total.visible_sum, total.forwards),
            peak_visible=total.visible_peak,
            columns=max((len(table) for table in cache.tables.values()), default=0),
            bytes=cache.report().bytes or 0,
            fed=self._past_fed + sum(row.fed for row in self._rows),
            generated=self._generated,
            forwards=self._shared.forwards,
            rows=[row.report() for row in self._rows],
        )

    def report_row(self, row: int) -> RowReport:
        """Return what one row holds, and has held since it began."""
        self._check_row(row)
        return self._rows[row].report()

    def _take_images_again(self) -> None:
        """Prepare the images of rows that are to be read again, as after an `act` that has failed."""
        for row in self._rows:
            if row.is_live and not row.read and lacks_pixels(row.images):
                columns = self._talks.read(row, None).history.columns
                row.images = read_images(row.number, self._entry, columns)

    def _taggers(self, rows: Sequence[Row], kinds: Mapping[int, int]) -> list[ConstantTagger | RuleTagger]:
        """Return what types the replies of some rows: one for all, unless they differ. `kinds`: types that are given."""
        if not kinds and not self._counts_turns:
            return [self._new_tagger(None)]
        return [
            ConstantTagger(kinds[row.number]) if row.number in kinds else self._new_tagger(row.roles) for row in rows
        ]

    def _new_tagger(self, roles: Sequence[str] | None) -> ConstantTagger | RuleTagger:
        tagger = make_tagger(self.config, self.tokenizer, roles)
        if isinstance(tagger, RuleTagger):  # whatever ends a reply here ends the message
            tagger.end_ids = {*tagger.end_ids, *self._writer.ends}
        return tagger

    def _new_row(self, number: int, seed: Any = None) -> Row:
        self._begun += 1
        return Row(number, random.Random(f"{self.seed} {self._begun if seed is None else seed}"))

    def _retype(self, row: Row, types: Sequence[int]) -> None:
        """Give the tokens of a row other types, as far as there are some; if that cannot be, nothing has changed."""
        before = row.types
        if before[: row.read] != list(types[: row.read]):
            row.types = [*types[: len(before)], *before[len(types) :]]
            try:
                self._shared.retype([row])
            except ValueError:
                row.types = before
                raise
        row.types = [*types[: len(before)], *before[len(types) :]]

    def _forget(self, row: Row) -> None:
        self._past.add(row.usage)
        self._past_fed += row.fed

    def _check_row(self, row: Any) -> None:
        if isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < len(self._rows):
            raise ValueError(f"AgentBatch: there is no row {row!r}; rows have the numbers 0 to {len(self._rows) - 1}.")

    def _check_lengths(self, rows: Sequence[Row]) -> None:
        limit = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        for row in rows:
            length = len(row.ids) + len(self._writer.header_of(row)) + self.max_new_tokens
            if limit is not None and length > limit:
                raise ValueError(
                    f"row {row.number}: its history of {len(row.ids)} tokens and a reply of up to {self.max_new_tokens} are more than "
                    f"the {limit} positions that {self._state.model_name} has. Finish the row, or lower max_new_tokens."
                )
