"""A small tokenizer of an environment's own words: one token a thing, a word, and a phrase that stands often.

It knows what it was made from and nothing else: an unknown word is an error, not a token that stands for anything.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hsa_factory.config import FeedbackConfig

from .environments import Environment, Game


PAD, ACT, END = "<|pad|>", "<|act|>", "<|end|>"
FEEDBACK = FeedbackConfig().token
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}{{ '" + ACT + "' + message.content + '" + END + "' }}"
    "{%- else -%}{{ message.content }}{{ '\\n' if message.role == 'system' }}{%- endif -%}"
    "{%- endfor -%}"
    "{{- '" + ACT + "' if add_generation_prompt -}}"
)
"""The environment's texts as they are, ``<|act|>`` before an action and ``<|end|>`` after it."""

PROBES = ("x", "y")
"""What hsa-factory tries a template with, to see what it puts around a message."""

_WORD = r"[\w'-]+|[^\w\s]"
_SPACES = Regex(r"\s+")


def learn_phrases(texts: Iterable[str], things: Iterable[str], often: int) -> list[str]:
    """Return what stands between things or ends of sentences at least `often` times: two words or more, sorted."""
    between = re.compile(f"{_any_of(things)}|(?<=[.:!?])")
    pieces: Counter[str] = Counter()
    for text, count in Counter(texts).items():
        for piece in between.split(text):
            pieces[piece.strip()] += count
    return sorted(piece for piece, count in pieces.items() if count >= often and len(re.findall(_WORD, piece)) > 1)


def build_tokenizer(
    texts: Iterable[str], things: Iterable[str], often: int | None = 200, extra_texts: Iterable[str] = ()
) -> PreTrainedTokenizerFast:
    """Make a tokenizer of the words of texts, with one token for each thing and each frequent phrase.

    Spaces and line breaks are not kept: ``decode(encode(text))`` is the text up to these. Letters keep their case.

    Args:
        texts: What phrases are counted in.
        things: Names that are one token, of one word or several; none: each word and mark is a token.
        often: How many times a phrase must stand to be a token of its own; None: no phrase is.
        extra_texts: Texts of which only the words are taken.
    """
    texts, things = [" ".join(text.split()) for text in texts], sorted(set(things))
    phrases = [] if often is None else learn_phrases(texts, things, often)
    whole = _or_word(_any_of([*things, *phrases]))
    words = {word for text in set(texts) for word in re.findall(whole, text)}
    words |= set(PROBES)
    words |= {word for phrase in [*phrases, *extra_texts] for word in re.findall(_or_word(_any_of(things)), phrase)}
    special = [PAD, ACT, END, FEEDBACK]
    vocabulary = {token: number for number, token in enumerate([*special, *sorted(words | {*things, *phrases})])}

    tokenizer = Tokenizer(models.WordLevel(vocabulary))  # without an unknown token it raises
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(_SPACES, " "), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(whole), behavior="removed", invert=True)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[ACT, FEEDBACK],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
        padding_side="right",
    )


def _or_word(pattern: str) -> str:
    return f"{pattern}|{_WORD}" if pattern else _WORD


def _any_of(texts: Iterable[str]) -> str:
    """Return a pattern that finds any of the texts as whole words, the longest that fits."""
    longest_first = sorted(set(texts), key=lambda text: (-len(text), text))
    begin = [r"(?<![\w'-])" if re.match(r"\w", text) else "" for text in longest_first]
    end = [r"(?![\w'-])" if re.search(r"\w$", text) else "" for text in longest_first]
    return "|".join(f"{b}{re.escape(text)}{e}" for b, text, e in zip(begin, longest_first, end, strict=True))


# -- what an environment says ----------------------------------------------------------------------------------


def survey(
    environment: Environment, games: Iterable[Game], seed: int = 0, steps: int = 40
) -> tuple[list[str], set[str]]:
    """Return all texts and names of things of games that are played half by the expert, half without a plan.

    So texts are there that no good player sees: refusals, full hands, what lies where it does not belong.
    """
    chance = random.Random(seed)
    texts: list[str] = []
    things: set[str] = set()
    for game in games:
        texts += [environment.reset(game, steps), environment.task]
        step = None
        while step is None or not step.done:
            things |= environment.things()
            action = environment.expert_action() if chance.random() < 0.5 else None
            action = action or chance.choice([*environment.valid_actions(), "nothing"])
            step = environment.step(action)
            texts += [action, step.observation]
    return texts, things


def tokenizer_of(
    environment: Environment,
    games: Iterable[Game],
    often: int = 100,
    words: bool = False,
) -> PreTrainedTokenizerFast:
    """Make an environment's tokenizer from games of its train fold, all that may be said of mistakes included.

    Args:
        environment: In which they are played.
        games: The games.
        often: See `build_tokenizer`.
        words: Whether each word and mark is a token, with no tokens for things and phrases.
    """
    texts, things = survey(environment, games)
    if words:
        return build_tokenizer(texts, (), None, [*environment.possible_mistakes(), *things])
    return build_tokenizer(texts, things, often, environment.possible_mistakes())


def same_text(one: str, other: str) -> bool:
    """Return whether two texts differ in spaces and line breaks only."""
    return "".join(one.split()) == "".join(other.split())


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: str | Path) -> Path:
    """Write a tokenizer where transformers and LLaMA-Factory find it, and return the directory."""
    tokenizer.save_pretrained(str(directory))
    return Path(directory)
