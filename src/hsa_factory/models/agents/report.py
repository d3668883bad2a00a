"""What the rows of a batch of agents hold, in numbers."""

from dataclasses import dataclass, field


@dataclass
class Usage:
    """What the cache has held for one row, forward by forward.

    Attributes:
        held: Keys of the row now.
        visible: Those of them that its next token may see.
        forwards: How often it was counted: after each forward that has read a token of the row.
    """

    held: int = 0
    visible: int = 0
    forwards: int = 0
    held_sum: int = 0
    visible_sum: int = 0
    held_peak: int = 0
    visible_peak: int = 0

    def note(self, held: int, visible: int) -> None:
        """Count after a forward."""
        self.held, self.visible, self.forwards = held, visible, self.forwards + 1
        self.held_sum, self.visible_sum = self.held_sum + held, self.visible_sum + visible
        self.held_peak, self.visible_peak = max(self.held_peak, held), max(self.visible_peak, visible)

    def add(self, other: "Usage") -> None:
        """Add the forwards of another row."""
        self.forwards += other.forwards
        self.held_sum, self.visible_sum = self.held_sum + other.held_sum, self.visible_sum + other.visible_sum
        self.held_peak = max(self.held_peak, other.held_peak)
        self.visible_peak = max(self.visible_peak, other.visible_peak)


@dataclass(frozen=True)
class RowReport:
    """What one row holds, and has held since it began; a finished row keeps its numbers until it begins anew.

    Keys are those of the layer that holds most. Means are over the forwards that have read a token of the row.

    Attributes:
        row: Its number.
        is_live: Whether it plays.
        held: Keys in the cache now.
        visible: Those of them that the next token may see.
        waiting: The others, which go with the next ones.
        mean_held: Mean of `held`.
        peak_held: The most.
        mean_visible: Mean of `visible`.
        peak_visible: The most.
        tokens: Tokens of its history, those included that the model has yet to read.
        fed: Tokens that the model has read.
        replies: How often it has answered.
    """

    row: int
    is_live: bool
    held: int
    visible: int
    waiting: int
    mean_held: float
    peak_held: int
    mean_visible: float
    peak_visible: int
    tokens: int
    fed: int
    replies: int


@dataclass(frozen=True)
class AgentReport:
    """What all rows hold, and what it has cost.

    Attributes:
        live: Number of rows that play.
        held: Keys of all live rows now.
        visible: Those of them that a next token may see.
        waiting: The others.
        mean_held: Mean keys of a row, over all its forwards and all rows, those of former episodes included.
        peak_held: The most keys that one row has held.
        mean_visible: As `mean_held`, of the visible ones.
        peak_visible: As `peak_held`, of the visible ones.
        columns: Keys of a row as they lie in memory: of the longest row, with what waits and padding between rows.
        bytes: Memory of all keys and values, spare room included.
        fed: Tokens read, of all rows and episodes.
        generated: Tokens written.
        forwards: Forwards of the model.
        rows: Each row's own.
    """

    live: int
    held: int
    visible: int
    waiting: int
    mean_held: float
    peak_held: int
    mean_visible: float
    peak_visible: int
    columns: int
    bytes: int
    fed: int
    generated: int
    forwards: int
    rows: list[RowReport] = field(repr=False)


def mean(total: int, number: int) -> float:
    """Return a mean; 0 of nothing."""
    return total / number if number else 0.0
