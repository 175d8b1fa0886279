"""Long texts in which needles are hidden: sentences that give a value for a key, of which one is asked for at the end.

The task is that of "Needle in a Haystack" (G. Kamradt, 2023); several needles, one of which is asked for, are those of
YOCO (arXiv:2405.05254, sec. 4.3).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torchscale_fairseq.core.errors import InputError

Tokens = list[int]
EOS = 2
NEEDLE = "The magic number of {key} is {value} ."
KEYS = ("Accra", "Bern", "Cairo", "Dhaka", "Essen", "Florence", "Geneva", "Havana", "Izmir", "Jakarta", "Kyoto", "Lima")
HAYSTACK = (
    "The harbour is quiet in the morning .",
    "A baker carries bread along the narrow street .",
    "Rain falls on the roofs and on the old bridge .",
    "Two children read a book below the window .",
    "The train to the coast is late again today .",
    "In the evening the lamps are lit one by one .",
)
"""Sentences that fill a text unless a file is given."""


@dataclass(frozen=True)
class Row:
    """A text that ends with a question and its answer.

    Args:
        tokens: the text, </s> in front.
        answer: how many tokens at its end are the answer.
    """

    tokens: Tokens
    answer: int


@dataclass(frozen=True)
class Words:
    """The words that needles are made of.

    Args:
        needle: a sentence with {key} and, after it, {value}; what stands before {value} is the question.
        keys: to choose from.
        values: to choose from; None for numbers of five digits.

    Raises:
        InputError: the sentence lacks one of the two.
    """

    needle: str = NEEDLE
    keys: Sequence[str] = KEYS
    values: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.needle.find("{key}") < self.needle.find("{value}"):
            raise InputError(f"--needle '{self.needle}' needs {{key}} and, after it, {{value}}, as in '{NEEDLE}'")

    def draw(self, count: int, generator: random.Random) -> list[tuple[str, str, str]]:
        """Needles of different keys and values, each as question, answer and the rest of the sentence."""
        keys = generator.sample(list(self.keys), count)
        values = generator.sample(self.answers, count)
        return [self.parts(key, value) for key, value in zip(keys, values, strict=True)]

    @property
    def answers(self) -> Sequence[object]:
        """The values to choose from."""
        return range(10_000, 100_000) if self.values is None else self.values

    def parts(self, key: str, value: object) -> tuple[str, str, str]:
        """Question, answer and the rest of the sentence."""
        before, after = self.needle.split("{value}", 1)
        return before.replace("{key}", key), str(value), after


class NeedleTexts:
    """Makes texts of any length.

    Args:
        encode: text to tokens.
        haystack: sentences of the text around the needles; they are repeated as often as needed.
        words: of the needles.
        needles: hidden in each text; one of them is asked for.

    Raises:
        InputError: there are fewer keys or values than needles.
    """

    def __init__(self, encode: Callable[[str], Tokens], haystack: Sequence[str], words: Words, needles: int = 1):
        self.encode = encode
        self.haystack = [tokens for tokens in map(encode, haystack) if tokens]
        self.words = words
        self.needles = needles
        for option, given in (("--keys", words.keys), ("--values", words.values)):
            if given is not None and len(given) < needles:
                raise InputError(f"--needles {needles} needs as many {option}, and there are {len(given)}")
        if not self.haystack:
            raise InputError("--text has no sentence")

    def row(self, length: int, depth: float, generator: random.Random) -> Row:
        """A text of exactly ``length`` tokens.

        Args:
            length: tokens, the answer included.
            depth: where the needle that is asked for stands, 0 for the beginning and 1 for the end; others stand
                anywhere.
            generator: draws words, sentences and the places of the others.

        Raises:
            InputError: needles and question take more tokens.
        """
        needles = [self._encoded(parts) for parts in self.words.draw(self.needles, generator)]
        question, answer, _ = needles[0]
        hidden = [question + answer + rest for question, answer, rest in needles]
        room = length - 1 - len(question) - len(answer) - sum(map(len, hidden))
        if room < 0:
            raise InputError(
                f"--lengths {length} has no room for needles and question; give at least {self._shortest()}"
            )
        depths = [depth, *(generator.random() for _ in hidden[1:])]
        text = _hide(self._sentences(room, generator), hidden, depths)
        return Row([EOS, *text, *question, *answer], len(answer))

    def _encoded(self, parts: tuple[str, str, str]) -> tuple[Tokens, Tokens, Tokens]:
        question, answer, rest = parts
        return self.encode(question), self.encode(answer), self.encode(rest)

    def _shortest(self) -> int:
        """Tokens of a text that has room for any needles."""
        key = max(self.words.keys, key=lambda key: len(self.encode(self.words.parts(key, "")[0])))
        value = max(self.words.answers, key=lambda value: len(self.encode(str(value))))
        question, answer, rest = map(len, self._encoded(self.words.parts(key, value)))
        return 1 + question + answer + self.needles * (question + answer + rest)

    def _sentences(self, room: int, generator: random.Random) -> list[Tokens]:
        """Sentences of ``room`` tokens together, the last one cut."""
        found: list[Tokens] = []
        number = generator.randrange(len(self.haystack))
        while room > 0:
            found.append(self.haystack[number % len(self.haystack)][:room])
            room -= len(found[-1])
            number += 1
        return found


def _hide(sentences: list[Tokens], needles: list[Tokens], depths: list[float]) -> Tokens:
    """The tokens of the sentences, with each needle between two of them."""
    places = sorted(((round(depth * len(sentences)), needle) for depth, needle in zip(depths, needles, strict=True)))
    text: Tokens = []
    start = 0
    for place, needle in places:
        text += [token for sentence in sentences[start:place] for token in sentence]
        text += needle
        start = place
    return text + [token for sentence in sentences[start:] for token in sentence]
