"""Rules written again in Python, from their descriptions: what pmill's answers are compared with."""

import math
import unicodedata
from collections import Counter
from fractions import Fraction

import regex

_ASCII_SPACE = regex.compile(r"[\t-\r ]+")
_WORD_BOUNDARY = regex.compile(r"(?w)\b", regex.V1)


def words(text):
    """The tokenizer `words`: NFKC, cut at ASCII white space, cut at UAX 29 word boundaries; what holds a letter
    or a number stays, in lower case."""
    found = []
    for piece in _ASCII_SPACE.split(unicodedata.normalize("NFKC", text)):
        for word in _WORD_BOUNDARY.split(piece):
            if regex.search(r"[\p{Alphabetic}\p{N}]", word):
                found.append(word.lower())
    return found


def window_counts(rows, size, weight, side="symmetric", keep=None, out_of_vocabulary="removed"):
    """Ordered pair → weight as a fraction. Symmetric: each event once, under its sorted pair."""
    distances = Counter()
    for row in rows:
        if keep is not None:
            row = [word if word in keep else None for word in row]
            if out_of_vocabulary == "removed":
                row = [word for word in row if word is not None]
        for later in range(len(row)):
            for earlier in range(max(0, later - size), later):
                first, second = row[earlier], row[later]
                if first is not None and second is not None:
                    distances[first, second, later - earlier] += 1
    value = {
        "uniform": lambda distance: Fraction(1),
        "harmonic": lambda distance: Fraction(1, distance),
        "dynamic": lambda distance: Fraction(size - distance + 1, size),
    }[weight]
    unit = math.lcm(*(value(distance).denominator for distance in range(1, size + 1)))
    counts = Counter()
    for (first, second, distance), times in distances.items():
        key = {
            "right": (first, second),
            "left": (second, first),
            "symmetric": (min(first, second), max(first, second)),
        }[side]
        counts[key] += times * int(value(distance) * unit)
    return {key: Fraction(count, unit) for key, count in counts.items()}


def most_frequent(rows, size):
    """The `size` most frequent words; ties by code point."""
    counts = Counter(word for row in rows for word in row)
    return {word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:size]}
