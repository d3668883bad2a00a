"""From the fields of the Board to the blocks of a training file; what is wrong is said in the Board's language."""

import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from ... import strict_json
from ...config import FeedbackConfig, HSAConfig
from ...training_file import BLOCKS, SAVED, TrainingFile, read_training_file, split_ranks
from ...user_errors import UserError
from ..options import check_stage, check_trainer
from ..state import Integration
from ..train.stages import STAGES
from .fields import FEEDBACK, FIELDS, MODE, OFF_MODE, ON_MODE, OTHER_OPTIONS, SAVED_MODE, Field
from .texts import label_of, message


OFF = "none"
"""What stands for ``hsa: false`` in the Board's arguments: LLaMA Board leaves out whatever is False."""


def read_blocks(values: Mapping[str, Any], lang: str) -> dict[str, Any]:
    """Return the blocks that the fields ask for; none where the Board is as LLaMA-Factory's own.

    Args:
        values: What each field holds, by its name.
        lang: The Board's language.

    Raises:
        UserError: If a field holds what is not allowed; in that language, naming the field.
    """
    blocks: dict[str, Any] = {}
    mode = values[MODE]
    if mode == ON_MODE:
        options = _read_options(values, "hsa", lang)
        for name, value in _read_other_options(values[OTHER_OPTIONS], lang).items():
            if name in options:
                raise UserError(message("twice", lang, what=name, place=label_of(OTHER_OPTIONS, lang)))
            options[name] = value
        blocks["hsa"] = options or True
    elif mode == OFF_MODE:
        blocks["hsa"] = OFF
    elif mode != SAVED_MODE:
        raise UserError(message("choice", lang, field=label_of(MODE, lang), value=mode))
    if values[FEEDBACK]:
        blocks["feedback"] = {"token": values["feedback_token"], **_read_options(values, "feedback", lang)}
    try:
        rules, _ = split_ranks(blocks.get("hsa"))
        for block, config_class in ((rules, HSAConfig), (blocks.get("feedback"), FeedbackConfig)):
            if isinstance(block, dict):
                config_class.from_dict(block)
    except ValueError as error:
        raise UserError(message("refused", lang, reason=error)) from None
    return blocks


def with_blocks(args: Mapping[str, Any], blocks: Mapping[str, Any], lang: str) -> dict[str, Any]:
    """Return LLaMA-Factory's arguments with the blocks.

    Args:
        args: Those that the Board has made; its extra arguments may name blocks, too.
        blocks: As `read_blocks` returns them.
        lang: The Board's language.

    Raises:
        UserError: If a block stands in both.
    """
    for name in BLOCKS:
        if name in args and name in blocks:
            raise UserError(message("twice", lang, what=name, place=label_of("extra_args", lang)))
    return {name: OFF if name in BLOCKS and value is False else value for name, value in {**args, **blocks}.items()}


def check_args(args: Mapping[str, Any], lang: str) -> TrainingFile:
    """Check arguments as a run would before it loads anything.

    Args:
        args: As `with_blocks` returns them.
        lang: The Board's language.

    Returns:
        What the run would read.

    Raises:
        UserError: In that language; the reason itself is in English.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "arguments.yaml"
        path.write_text(yaml.safe_dump(dict(args), allow_unicode=True), encoding="utf-8")
        try:
            training_file = read_training_file(path)
            if training_file.asked_for not in (False, SAVED) or not training_file.is_plain:
                check_trainer(training_file.args)
                _check_stage(training_file)
        except ValueError as error:
            raise UserError(message("refused", lang, reason=error)) from None
    return training_file


def _check_stage(training_file: TrainingFile) -> None:
    """Refuse a stage, or options that it does not know, as a run does.

    Raises:
        ValueError: With the reason.
    """
    name = training_file.args.get("stage", "sft")
    check_stage(name)
    state = Integration(training_file.hsa, training_file.feedback)
    STAGES[name].check(state, SimpleNamespace(**{"pref_loss": "sigmoid", **training_file.args}))


def _read_options(values: Mapping[str, Any], block: str, lang: str) -> dict[str, Any]:
    options = {}
    for field in FIELDS:
        value = values[field.name]
        value = "" if value is None else str(value).strip()
        if field.block == block and value not in ("", field.initial):
            options[field.option] = _read(field, value, lang)
    return options


def _read(field: Field, value: str, lang: str) -> Any:
    """Return what a training file says for a field's text.

    Raises:
        UserError: Naming the field.
    """
    if field.is_number:
        return _read_number(field, value, lang)
    if field.choices and value not in field.choices:  # of a saved configuration that was changed by hand
        raise UserError(message("choice", lang, field=label_of(field.name, lang), value=value))
    return value


def _read_number(field: Field, value: str, lang: str) -> Any:
    allowed = "decay" if field.is_decay else "limit"
    try:
        if field.is_decay:
            number: Any = float(value)
            if math.isfinite(number) and number >= 0:
                return number
        elif value.lower() == "none":
            return "none"
        elif re.fullmatch(r"\d+", value):
            return int(value)
    except ValueError:
        pass
    raise UserError(message(allowed, lang, field=label_of(field.name, lang), value=value))


def _read_other_options(text: Any, lang: str) -> dict[str, Any]:
    try:
        options = strict_json.loads(str(text or "{}").encode())
    except ValueError as error:
        raise UserError(message("json", lang, field=label_of(OTHER_OPTIONS, lang), reason=error)) from None
    if not isinstance(options, dict):
        raise UserError(message("json", lang, field=label_of(OTHER_OPTIONS, lang), reason=repr(text)))
    return options
