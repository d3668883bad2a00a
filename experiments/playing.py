"""A trained system plays games, many side by side: what it wins, and what its memory costs."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    SuppressTokensLogitsProcessor,
)

from hsa_factory import HSAConfig, enable_hsa
from hsa_factory.models import AgentBatch
from hsa_factory.whole_files import write_whole

from .conversations import feedback_text
from .environments import Environment, Game, Step, open_environments
from .reading import read_json_lines
from .systems import CUT, System, random_type
from .vocabulary import ACT, END, FEEDBACK, PAD


ROWS = 64
LONGEST_ACTION = 12
NEVER_WRITTEN = [
    ACT,
    FEEDBACK,
    PAD,
]  # an untrained model would write them: no command holds one, and a marker would judge itself


@dataclass(frozen=True)
class Play:
    """How a system plays.

    Attributes:
        environment: Its name.
        step_limit: Actions a game.
        temperature: 0: the likeliest action.
        seed: Of sampled play.
        feedback: Messages that a game may bring at most: after a mistake the answer begins with the marker and a reason, and
            a fatal one is undone.
    """

    environment: str
    step_limit: int
    temperature: float = 0.0
    seed: int = 0
    feedback: int = 0


@dataclass
class PlayedGame:
    """A game that is over.

    Attributes:
        game: As text.
        won: Whether the task is done.
        lost: Whether it could not be done any more.
        score: At the end.
        actions: All of them.
        mistakes: Numbers of the actions that were mistakes.
        feedback: Numbers of the actions whose answer brought the marker.
        right_next: Whether the action after the first mistake was the expert's; None: no mistake, or nothing came after it.
        tokens: Of its history.
        mean_held: Keys held.
        peak_held: The most.
    """

    game: str
    won: bool
    lost: bool
    score: float
    actions: list[str]
    mistakes: list[int]
    feedback: list[int]
    right_next: bool | None
    tokens: int
    mean_held: float
    peak_held: int


def load_player(folder: Path, config: HSAConfig) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return a trained model with HSA on, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    return enable_hsa(model, config), AutoTokenizer.from_pretrained(str(folder))


class Seat:
    """One row of a batch and the game that is played in it."""

    def __init__(self, row: int, environment: Environment) -> None:
        self.row, self.environment = row, environment

    def begin(self, game: Game, play: Play) -> None:
        """Begin a game."""
        self.game, self.play = game, play
        self.step: Step | None = None
        self.observations = [self.environment.reset(game, play.step_limit)]
        self.actions: list[str] = []
        self.mistakes: list[int] = []
        self.feedback: list[int] = []
        self.right_next: bool | None = None
        self.lasting: list[str] = []

    def take(self, action: str) -> Step:
        """Take an action and note what it led to."""
        if self.mistakes == [len(self.actions) - 1]:
            self.right_next = action == self.environment.expert_action()
        step = self.step = self.environment.step(action)
        reason = self.environment.last_mistake()
        observation = step.observation
        if reason is None:
            self.lasting.append(action)
        else:
            self.mistakes.append(len(self.actions))
            is_last = len(self.actions) + 1 >= self.play.step_limit
            if (step.lost or not step.done) and not is_last and len(self.feedback) < self.play.feedback:
                self.feedback.append(len(self.actions))
                observation = feedback_text(reason, observation)
                step = self.step = self._undo(step) if step.lost else step
        self.actions.append(action)
        self.observations.append(observation)
        return step

    def _undo(self, step: Step) -> Step:
        """Bring the game back to where it was before a fatal mistake, which costs an action all the same."""
        left = self.play.step_limit - (len(self.actions) + 1)
        self.environment.reset(self.game, len(self.lasting) + left)
        score = step.score
        for action in self.lasting:
            score = self.environment.step(action).score
        return replace(step, score=score, done=False, lost=False)

    def text(self, keep_last: int) -> str:
        """Return the conversation with its last observations only, as one text."""
        shown = [CUT] * (len(self.observations) - keep_last) + self.observations[-keep_last:]
        turns = [f"{text}{ACT}{action}{END}" for text, action in zip(shown, self.actions, strict=False)]
        # a task may end without a mark, and would run into the first word of what follows
        return "".join([f"{self.environment.task}\n", *turns, shown[-1], ACT])

    def finished(self, tokens: int, held: float, peak: int) -> PlayedGame:
        """Return what has come of the game."""
        step = self.step
        assert step is not None, "a game was finished before it began"
        result = (str(self.game), step.won, step.lost, step.score, self.actions, self.mistakes, self.feedback)
        return PlayedGame(*result, self.right_next, tokens, round(held, 1), peak)


class Table:
    """All seats, on one batch of agents."""

    def __init__(
        self, model: Any, tokenizer: Any, system: System, play: Play, shares: Mapping[str, float] | None
    ) -> None:
        self.system, self.play, self.shares = system, play, shares
        self.agents = AgentBatch(
            model,
            tokenizer,
            rows=ROWS,
            max_new_tokens=LONGEST_ACTION,
            stop=END,
            temperature=play.temperature,
            seed=play.seed,
            logits_processor=[SuppressTokensLogitsProcessor(tokenizer.convert_tokens_to_ids(NEVER_WRITTEN))],
        )
        self.seats = [Seat(row, env) for row, env in enumerate(open_environments(play.environment, ROWS))]

    def run(self, games: Sequence[Game]) -> list[PlayedGame]:
        """Play all games, in their order."""
        waiting, played = list(reversed(games)), {}
        busy = [seat for seat in self.seats if self._begin(seat, waiting)]
        self.agents.finish([seat.row for seat in self.seats if seat not in busy])
        while busy:
            replies = self.agents.act()
            going = []
            for seat in busy:
                reply = replies[seat.row]
                assert reply is not None, "a seat that plays has a row that answers"
                self._type_reply(seat, len(reply.ids))
                if seat.take(str(reply).strip()).done:
                    played[seat.game] = self._finish(seat)
                    if self._begin(seat, waiting):
                        going.append(seat)
                    else:
                        self.agents.finish(seat.row)
                else:
                    self._tell(seat)
                    going.append(seat)
            busy = going
        return [played[game] for game in games]

    def _begin(self, seat: Seat, waiting: list[Game]) -> bool:
        if not waiting:
            return False
        seat.begin(waiting.pop(), self.play)
        self.agents.start(seat.row, seed=str(seat.game))
        if self.system.keep_last is None:
            self.agents.append({seat.row: seat.environment.task}, self._type(seat, 0), role="system")
        self._tell(seat)
        return True

    def _tell(self, seat: Seat) -> None:
        """Let the model read the last observation, or the whole text that is left of the game."""
        if self.system.keep_last is not None:
            self.agents.start(seat.row, seat.text(self.system.keep_last), seed=f"{seat.game} {len(seat.actions)}")
            return
        kind = self._type(seat, 2 * len(seat.actions) + 1)
        self.agents.append({seat.row: seat.observations[-1] + ACT}, kind, role="user")

    def _type(self, seat: Seat, number: int) -> str | None:
        """Return the type of a message that is drawn; None: by rules."""
        if self.shares is None:
            return None
        return random_type(seat.game, number, self.shares) if number else "GLOBAL"

    def _type_reply(self, seat: Seat, length: int) -> None:
        kind = self._type(seat, 2 * len(seat.actions) + 2)
        if kind is not None:
            stop = len(self.agents.history(seat.row)["input_ids"])
            self.agents.retype(seat.row, stop - length, stop, kind)

    def _finish(self, seat: Seat) -> PlayedGame:
        report = self.agents.report().rows[seat.row]
        return seat.finished(report.tokens, report.mean_held, report.peak_held)


def play_games(
    folder: Path,
    model_folder: Path,
    system: System,
    config: HSAConfig,
    play: Play,
    games: Sequence[Game],
    shares: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Let a system play games, write each into ``games.jsonl``, and return the sums.

    Args:
        folder: Where the file goes.
        model_folder: Of the trained model.
        system: What plays.
        config: Its HSA, with its rules.
        play: How.
        games: Which.
        shares: How often each type is drawn, for random types; None: types are not random.
    """
    model, tokenizer = load_player(model_folder, config)
    table = Table(model, tokenizer, system, play, shares)
    started, used = time.time(), time.process_time()
    played = table.run(games)
    seconds, cpu = time.time() - started, time.process_time() - used
    lines = [json.dumps(asdict(game)) for game in played]
    write_whole(folder / "games.jsonl", "\n".join(lines) + "\n")
    report = table.agents.report()
    return {
        "games": len(played),
        "won": sum(game.won for game in played),
        "lost": sum(game.lost for game in played),
        "score": sum(game.score for game in played) / len(played),
        "turns": sum(len(game.actions) for game in played) / len(played),
        "mean_held": report.mean_held,
        "peak_held": report.peak_held,
        "mean_visible": report.mean_visible,
        "read": report.fed,
        "written": report.generated,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
    }


def read_games(folder: Path) -> list[PlayedGame]:
    """Return the games that `play_games` has written."""
    return [PlayedGame(**game) for game in read_json_lines(folder / "games.jsonl")]
