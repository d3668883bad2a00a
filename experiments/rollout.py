"""Playing many games with a model, side by side; what came of each is appended to a file, so that a run goes on where it ended."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsa_factory import HSAConfig, enable_hsa
from hsa_factory.models import AgentBatch, Reply

from .environments import Environment, Game, Step
from .vocabulary import ACT, END


CUT = "."
"""What stands for an observation that was cut away."""

Message = tuple[str, str]  # role and text
Typing = Callable[[Game, int], str | None]


@dataclass(frozen=True)
class Play:
    """How games are played.

    Attributes:
        step_limit: Actions a game.
        slots: Games side by side.
        max_new_tokens: Of an action.
        temperature: 0: greedy.
        top_p: Draw from the likeliest that together have this probability; None: from all.
        seed: Of the random numbers; a game's do not depend on the others.
        keep_last: How many observations stay in the text, which is then encoded anew for each action; None: all.
    """

    step_limit: int = 50
    slots: int = 128
    max_new_tokens: int = 12
    temperature: float = 0.0
    top_p: float | None = None
    seed: int = 0
    keep_last: int | None = None


@dataclass
class Result:
    """What came of a game.

    Attributes:
        game: Its name, ``str(game)``.
        won: Whether the task is done.
        lost: Whether it was lost for good.
        score: Between 0 and 1.
        steps: Actions taken.
        invalid: How many of them the environment did not know.
        actions: All of them.
        verbs: First words of actions, and how often.
        held_mean: Mean keys in the cache, over the forwards that read a token of the game.
        held_peak: The most.
        visible_mean: As `held_mean`, of keys that the next token could see.
        visible_peak: The most.
        fed: Tokens that the model read, its own included.
        generated: Tokens that it wrote.
        cpu_seconds: Of the model, in this process: the game's share of each batch. The environment's are left out.
    """

    game: str
    won: bool = False
    lost: bool = False
    score: float = 0.0
    steps: int = 0
    invalid: int = 0
    actions: list[str] = field(default_factory=list)
    verbs: dict[str, int] = field(default_factory=dict)
    held_mean: float = 0.0
    held_peak: int = 0
    visible_mean: float = 0.0
    visible_peak: int = 0
    fed: int = 0
    generated: int = 0
    cpu_seconds: float = 0.0

    @property
    def is_truncated(self) -> bool:
        """Whether the limit of steps ended it."""
        return not (self.won or self.lost)


def read_results(path: str | Path) -> dict[str, Result]:
    """Return the results in a file by the game's name; none if there is no file. A line that was cut off is left out."""
    results = {}
    path = Path(path)
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        results[values["game"]] = Result(**values)
    return results


def play_games(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: HSAConfig,
    environments: Sequence[Environment],
    games: Sequence[Game],
    path: str | Path | None = None,
    play: Play = Play(),
    typing: Typing | None = None,
) -> list[Result]:
    """Play games, and return a result for each, in their order.

    Args:
        model: A trained model; it plays with `config`, whatever it was trained with.
        tokenizer: Of the model, made by `experiments.vocabulary`.
        config: HSA's rules; types come from its `rules`, else all tokens have its default type.
        environments: One for each slot; fewer than `play.slots` are fewer slots.
        games: What is played.
        path: A JSONL file, to which each game is added once it has ended; those in it are not played again. None: no file.
        play: How they are played.
        typing: Called with a game and the number of a message (the task is 0), returns its type; None: the rules' type.
    """
    done = {} if path is None else read_results(path)
    waiting = [game for game in games if str(game) not in done]
    if waiting:
        enable_hsa(model, config).eval()
        slots = min(play.slots, len(environments), len(waiting))
        done |= _Table(model, tokenizer, environments[:slots], play, typing, path).play(waiting)
    return [done[str(game)] for game in games]


@dataclass
class _Slot:
    """A game under way."""

    game: Game
    result: Result
    messages: list[Message]
    held: list[tuple[float, float]] = field(default_factory=list)


class _Table:
    """The games under way: one agent, one environment a slot."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        environments: Sequence[Environment],
        play: Play,
        typing: Typing | None,
        path: str | Path | None,
    ) -> None:
        self._environments, self._settings, self._typing = environments, play, typing
        self._path = None if path is None else Path(path)
        self._slots: dict[int, _Slot] = {}
        self._agents = AgentBatch(
            model,
            tokenizer,
            rows=len(environments),
            max_new_tokens=play.max_new_tokens,
            header=ACT,
            footer=END,
            temperature=play.temperature,
            top_p=play.top_p,
            seed=play.seed,
        )

    def play(self, games: Sequence[Game]) -> dict[str, Result]:
        """Play all games; a slot that is free takes the next."""
        waiting: list[Game] = list(games)
        done: dict[str, Result] = {}
        for row in range(len(self._environments)):
            self._begin(row, waiting.pop(0))
        while self._slots:
            started = time.process_time()
            self._show()
            replies = self._agents.act(types=self._types_of_replies())
            share = (time.process_time() - started) / len(self._slots)
            ended = []
            for row, slot in list(self._slots.items()):
                reply = replies[row]
                assert reply is not None, "each slot was shown something"
                slot.result.cpu_seconds += share
                if self._step(row, slot, reply):
                    ended.append(self._end(row, slot))
                    if waiting:
                        self._begin(row, waiting.pop(0))
            self._write(ended)
            done |= {result.game: result for result in ended}
        return done

    def _begin(self, row: int, game: Game) -> None:
        environment = self._environments[row]
        observation = environment.reset(game, self._settings.step_limit)
        messages = [("system", environment.task), ("user", observation)]
        self._slots[row] = _Slot(game, Result(str(game)), messages)
        self._agents.start(row, seed=f"{self._settings.seed} {game}")

    def _show(self) -> None:
        """Append what each slot's agent has not read: the last message, or, where text is cut, all."""
        new: dict[int, list[tuple[int, Message]]] = {}
        for row, slot in self._slots.items():
            messages = list(enumerate(slot.messages))
            if self._settings.keep_last is not None:
                self._agents.start(row, seed=f"{self._settings.seed} {slot.game} {len(messages)}")
                new[row] = list(enumerate(keep_last(slot.messages, self._settings.keep_last)))
            else:
                new[row] = messages if len(messages) == 2 else messages[-1:]
        for place in range(max(len(messages) for messages in new.values())):
            by_role: dict[str, dict[int, tuple[int, str]]] = {}
            for row, messages in new.items():
                if place < len(messages):
                    number, (role, text) = messages[place]
                    by_role.setdefault(role, {})[row] = number, text
            for role, texts in by_role.items():
                types = {row: self._type(row, number) for row, (number, _) in texts.items()}
                self._agents.append({row: text for row, (_, text) in texts.items()}, types, role)

    def _type(self, row: int, number: int) -> str | None:
        return None if self._typing is None else self._typing(self._slots[row].game, number)

    def _types_of_replies(self) -> Mapping[int, str | None] | None:
        if self._typing is None:
            return None
        return {row: self._type(row, len(slot.messages)) for row, slot in self._slots.items()}

    def _step(self, row: int, slot: _Slot, reply: Reply) -> bool:
        """Take an action and return whether the game is over."""
        action = reply.strip()
        step: Step = self._environments[row].step(action)
        result = slot.result
        result.actions.append(action)
        result.generated += len(reply.ids) + reply.is_complete
        result.invalid += step.invalid
        result.steps, result.score, result.won, result.lost = len(result.actions), step.score, step.won, step.lost
        slot.messages += [("assistant", f"{ACT}{reply}{END}"), ("user", step.observation)]
        if self._settings.keep_last is not None or step.done:
            self._note_cache(row, slot)
        return step.done

    def _note_cache(self, row: int, slot: _Slot) -> None:
        """Count what the cache has held since the row began."""
        report, result = self._agents.report_row(row), slot.result
        slot.held.append((report.mean_held, report.mean_visible))
        result.held_peak = max(result.held_peak, report.peak_held)
        result.visible_peak = max(result.visible_peak, report.peak_visible)
        result.fed += report.fed

    def _end(self, row: int, slot: _Slot) -> Result:
        result = slot.result
        result.held_mean, result.visible_mean = (round(sum(each) / len(slot.held), 2) for each in zip(*slot.held))
        result.verbs = dict(Counter(action.split(" ", 1)[0] for action in result.actions))
        result.cpu_seconds = round(result.cpu_seconds, 4)
        self._agents.finish(row)
        del self._slots[row]
        return result

    def _write(self, results: Sequence[Result]) -> None:
        if self._path is None or not results:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{json.dumps(asdict(result), ensure_ascii=False)}\n" for result in results))


def keep_last(messages: Sequence[Message], observations: int) -> list[Message]:
    """Return messages in which only the last observations have their text; `CUT` stands for the others."""
    places = [number for number, (role, _) in enumerate(messages) if role == "user"]
    cut = set(places[: max(len(places) - observations, 0)])
    return [(role, CUT) if number in cut else (role, text) for number, (role, text) in enumerate(messages)]
