"""The samples as one HTML page that needs nothing but a browser."""

import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, TextIO

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..config import HSAConfig
from ..feedback import Reason
from ..semantics import SemanticType
from ..visible_text import escape_hidden, show_hidden, show_hidden_line
from .cells import group_tokens
from .images import ImageStore
from .inspected_sample import InspectedSample, RowSummary, Turn


PAGE_LIMIT = 200 * 2**20  # bytes of samples and pictures: browsers still open such a page
_CUT_TEXT = 20_000  # characters shown of what truncation took from a message
_REASON_CODES = {reason: chr(ord("a") + number) for number, reason in enumerate(Reason)}
_TRAINED = "."
_LOADER = PackageLoader("hsa_factory.inspection", "html")
_SCRIPTS = ("charts", "attention", "sample", "still_seen", "conversation", "visibility", "overview", "main")


class PageWriter:
    """Collects samples and writes the page.

    Args:
        title: Shown at the top.
        config: The rules by which the page shows what a token sees; None: plain causal attention.
        marker_id: Id of the feedback marker; None: none is marked.
        decode: Turns ids into text.
        notes: Lines that a reader must know.

    Attributes:
        size: Bytes of samples and pictures so far.
    """

    def __init__(
        self,
        title: str,
        config: HSAConfig | None,
        marker_id: int | None,
        decode: Callable[[Sequence[int]], str],
        notes: Sequence[str] = (),
    ) -> None:
        self.title = title
        self.config = config
        self.marker_id = marker_id
        self.decode = decode
        self.notes = list(notes)
        self.size = 0
        self._samples: list[tuple[str, str]] = []
        self._images = ImageStore()

    def add(self, sample: InspectedSample) -> None:
        """Add a sample."""
        shown = len(self._images.uris)
        data = _as_script(self._sample_data(sample))
        self._samples.append((sample.name, data))
        self.size += len(data) + sum(map(len, self._images.uris[shown:]))

    def write(self, file: TextIO, overview: Iterable[RowSummary], accounts: dict[str, dict[str, Any]]) -> None:
        """Write the page.

        Args:
            file: Where to.
            overview: All rows of the prepared data.
            accounts: What happened to each data set, as in ``hsa_report.json``.
        """
        environment = Environment(loader=_LOADER, autoescape=True, undefined=StrictUndefined)
        page = environment.get_template("page.html").generate(
            title=show_hidden_line(self.title),
            notes=list(map(show_hidden_line, self.notes)),
            types=[member.name for member in SemanticType],
            nonce=secrets.token_urlsafe(16),
            style=_source(environment, "style.css"),
            scripts=[_source(environment, f"{name}.js") for name in _SCRIPTS],
            settings=_as_script(self._settings()),
            overview=_as_script(_overview_data(overview, accounts)),
            images=_as_script(self._images.uris),
            samples=self._samples,
        )
        file.writelines(page)

    def _settings(self) -> dict[str, Any]:
        config = self.config
        return {
            "types": [member.name for member in SemanticType],
            "reasons": {code: str(reason) for reason, code in _REASON_CODES.items()},
            "rules": None
            if config is None
            else {
                "decays": config.decays,
                "windows": config.windows,
                "turns": config.turns,
                "hide": config.hide,
            },
        }

    def _sample_data(self, sample: InspectedSample) -> dict[str, Any]:
        breaks = [turn.start for turn in sample.turns] + [turn.stop for turn in sample.turns]
        cells = group_tokens(sample.input_ids, sample.tokens, self.decode, breaks)
        texts = [show_hidden(text) for _, text in cells]
        return {
            "index": sample.index,
            "name": sample.name,
            "dataset": show_hidden_line(sample.dataset),
            "ids": sample.input_ids,
            "types": "".join(map(str, sample.semantic_ids)),
            "reasons": "".join(
                _TRAINED if reason is None else _REASON_CODES[Reason(reason)] for reason in sample.reasons
            ),
            "weights": _fold([round(weight, 6) for weight in sample.loss_weights or ()]),
            "documents": _fold(sample.documents),
            "turnNumbers": _fold(sample.turn_ids or ()),
            "text": "".join(texts),
            "lengths": [_utf16_length(text) for text in texts],
            "sizes": [[number, size] for number, (size, _) in enumerate(cells) if size != 1],
            "marker": self.marker_id,
            "parts": [
                [show_hidden_line(part.dataset), part.index, part.start, part.stop, part.cut, part.marker_cut]
                for part in sample.parts
            ],
            "turns": [self._turn_data(turn) for turn in sample.turns],
        }

    def _turn_data(self, turn: Turn) -> dict[str, Any]:
        cut_text = show_hidden(self.decode(turn.cut_ids)) if turn.cut_ids else ""
        if len(cut_text) > _CUT_TEXT:
            cut_text = f"{cut_text[:_CUT_TEXT]} […]"
        return {
            "part": turn.part,
            "message": turn.message,
            "role": turn.role,
            "number": turn.number,
            "start": turn.start,
            "stop": turn.stop,
            "cut": len(turn.cut_ids),
            "cutText": cut_text,
            "media": [
                {
                    "kind": item.kind,
                    "start": item.start,
                    "size": item.size,
                    "name": show_hidden_line(item.source) if isinstance(item.source, str) else "",
                    "image": self._images.add(item.source) if item.kind == "image" else None,
                }
                for item in turn.media
            ],
        }


def _fold(numbers: Iterable[float]) -> list[list[float]]:
    """Write equal numbers in a row as [number, count]; the page unfolds them."""
    return [[number, len(list(run))] for number, run in groupby(numbers)]


def _overview_data(overview: Iterable[RowSummary], accounts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    rows = list(overview)
    names = list(dict.fromkeys(row.dataset for row in rows))
    number = {name: position for position, name in enumerate(names)}
    return {
        "accounts": {show_hidden_line(name): account for name, account in accounts.items()},
        "datasets": list(map(show_hidden_line, names)),
        "rows": [
            [
                *(row.index, number[row.dataset], row.length, *row.types, row.trained, row.cut, int(row.marker_cut)),
                row.side,
            ]
            for row in rows
        ],
    }


def _as_script(value: Any) -> str:
    """Return JSON that can stand inside a script element, whatever it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return escape_hidden(text).replace("<", "\\u003c")


def _source(environment: Environment, name: str) -> str:
    return _LOADER.get_source(environment, name)[0]


def _utf16_length(text: str) -> int:
    """Return the length of a text as JavaScript counts it."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
