"""The longest run of words that a text shares with any text of a corpus.

All n-grams of one length are compared at once by 64-bit hashes. The longest length is found by binary search, since a
text that shares n words in a row also shares n - 1. Ten thousand texts against a hundred thousand, of a hundred words
each, take a minute or two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int, UInt64

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_BLOCK = 1 << 20  # positions hashed at a time: 8 MB per array
_SIEVE_BITS = 24  # maximum: 16 MB


def words_of(text: str) -> list[str]:
    """The words of a text, case-folded and without punctuation."""
    return _WORD.findall(text.casefold())


@dataclass(frozen=True, eq=False)
class SharedNgrams:
    """For each of `t` texts, the longest n-gram that it shares with the corpus.

    Attributes:
        words: words of each text.
        length: length of the n-gram in words, 0 if no word is shared.
        start: index of its first word in the text.
        source: index of the first corpus text that contains it, -1 if no word is shared.
    """

    words: list[list[str]]
    length: Int[np.ndarray, " t"]
    start: Int[np.ndarray, " t"]
    source: Int[np.ndarray, " t"]

    def ngram(self, text: int) -> str:
        """The n-gram of one text."""
        start = int(self.start[text])
        return " ".join(self.words[text][start : start + int(self.length[text])])


def longest_shared_ngrams(texts: Sequence[str], corpus: Sequence[str]) -> SharedNgrams:
    """Finds the longest word n-gram that each text shares with any text of the corpus.

    Two different n-grams of one length collide with a probability of about 1e-17 per pair.
    """
    values: dict[str, int] = {}
    words = [words_of(text) for text in texts]
    searched = _Laid.of(words, values)
    training = _Laid.of([words_of(text) for text in corpus], values)
    vocabulary = np.random.default_rng(0).integers(2**64, size=len(values) + 1, dtype=np.uint64)
    hashes, corpus_hashes = _NgramHashes(searched, vocabulary), _NgramHashes(training, vocabulary)
    length, start = np.zeros(len(words), dtype=np.int64), np.zeros(len(words), dtype=np.int64)
    source = np.full(len(words), -1)
    limit = min(searched.lengths.max(initial=0), training.lengths.max(initial=0))
    step = 1 << int(limit).bit_length() >> 1
    while step:  # all texts take the same steps, so each length is tried at most once
        tried = length + step
        for n in np.unique(tried[tried <= np.minimum(searched.lengths, limit)]).tolist():
            asked = (tried == n) & (searched.lengths >= n)
            positions = np.flatnonzero((searched.left >= n) & asked[searched.text_of])
            found, at = _first_places(hashes.at(positions, n), corpus_hashes, n)
            rows, first = np.unique(searched.text_of[positions[found]], return_index=True)
            length[rows] = n
            start[rows] = positions[found][first] - searched.starts[rows]
            source[rows] = training.text_of[at[first]]
        step >>= 1
    return SharedNgrams(words, length, start, source)


@dataclass(frozen=True, eq=False)
class _Laid:
    """Texts joined end to end, `w` words in total.

    Attributes:
        ids: id of each word.
        lengths: number of words of each text.
    """

    ids: Int[np.ndarray, " w"]
    lengths: Int[np.ndarray, " t"]

    @staticmethod
    def of(texts: Sequence[Sequence[str]], numbers: dict[str, int]) -> _Laid:
        """Joins texts; words without an id in `numbers` get the next one."""
        lengths = np.array([len(words) for words in texts], dtype=np.int64)
        every = (numbers.setdefault(word, len(numbers)) for words in texts for word in words)
        return _Laid(np.fromiter(every, dtype=np.int32, count=int(lengths.sum())), lengths)

    @cached_property
    def starts(self) -> Int[np.ndarray, " t"]:
        """First position of each text."""
        return np.asarray(np.cumsum(self.lengths) - self.lengths)

    @cached_property
    def text_of(self) -> Int[np.ndarray, " w"]:
        """The text of each position."""
        return np.repeat(np.arange(len(self.lengths), dtype=np.int32), self.lengths)

    @cached_property
    def left(self) -> Int[np.ndarray, " w"]:
        """Number of words from each position to the end of its text; an n-gram can begin if it is at least n."""
        ends = (self.starts + self.lengths)[self.text_of]
        return (ends - np.arange(len(self.ids))).astype(np.int32)


class _NgramHashes:
    """Rolling hashes of all n-grams: differences of a cumulative sum of word value times base^position.

    All arithmetic is modulo 2^64; numpy's overflow is intended.
    """

    def __init__(self, laid: _Laid, vocabulary: UInt64[np.ndarray, " vocabulary"]) -> None:
        count = len(laid.ids)
        self.laid = laid
        self.sums = np.zeros(count + 1, dtype=np.uint64)
        np.cumsum(vocabulary[laid.ids] * _powers(_BASE, count), out=self.sums[1:])
        self.back = _powers(pow(_BASE, -1, 2**64), count)  # makes a hash independent of the position

    def at(self, positions: Int[np.ndarray, " p"], n: int) -> UInt64[np.ndarray, " p"]:
        """Hashes of the n-grams at these positions."""
        return np.asarray((self.sums[positions + n] - self.sums[positions]) * self.back[positions])

    def sieved(
        self, n: int, wanted: UInt64[np.ndarray, " wanted"]
    ) -> tuple[Int[np.ndarray, " p"], UInt64[np.ndarray, " p"]]:
        """Positions and hashes of the n-grams with a wanted hash, and of at most about one in sixteen others."""
        bits = min(len(wanted).bit_length() + 4, _SIEVE_BITS)
        shift = np.uint64(64 - bits)
        passes = np.zeros(1 << bits, dtype=bool)
        passes[wanted >> shift] = True
        positions, hashes = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.uint64)]
        for first in range(0, len(self.back) - n + 1, _BLOCK):
            last = min(first + _BLOCK, len(self.back) - n + 1)
            every = (self.sums[first + n : last + n] - self.sums[first:last]) * self.back[first:last]
            kept = np.flatnonzero(passes[every >> shift] & (self.laid.left[first:last] >= n))
            positions.append(kept + first)
            hashes.append(every[kept])
        return np.concatenate(positions), np.concatenate(hashes)


def _powers(base: int, count: int) -> UInt64[np.ndarray, " count"]:
    """base^0, base^1, … modulo 2^64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[:1] = 1
    return np.cumprod(factors)


def _first_places(
    wanted: UInt64[np.ndarray, " p"], corpus: _NgramHashes, n: int
) -> tuple[Int[np.ndarray, " found"], Int[np.ndarray, " found"]]:
    """The indices of the wanted hashes that the corpus contains, and the first corpus position of each."""
    positions, hashes = corpus.sieved(n, wanted)
    if not len(hashes):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    place = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
    found = np.flatnonzero(hashes[place] == wanted)
    return found, positions[order[place[found]]]
