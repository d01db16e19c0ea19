"""A tokenizer with the part of CLIP's vocabulary that the captions need.

CLIP's byte-pair encoding has 49 408 entries; at 128 numbers each they would nearly outweigh the denoiser. Kept are the
bytes, the commonest merges, and every merge that spells a word of the captions: these words get the pieces that CLIP
would give them, any other text falls back to shorter pieces and at last to bytes.
"""

import gzip
import itertools
import re
from pathlib import Path

from transformers import CLIPTokenizer

from training import packages
from training.captions import BACKGROUNDS
from training.drawings import STYLES
from training.shapes import KINDS, PLACES, SIZES
from training.subjects import SUBJECTS

MAX_TOKENS = 77
#: The file's first line is a comment; CLIP uses this many merges after it.
_CLIP_MERGES = 48_894
#: Commonest merges kept for text outside the captions.
_COMMON = 256
_OTHER_WORDS = "an a on background white picture of with and the emoji icon sticker face"

Merge = tuple[str, str]


def build(work: Path) -> CLIPTokenizer:
    """Return the tokenizer; the vocabulary's package is fetched into `work` if it is not there."""
    merges = _clip_merges(packages.fetch(packages.CLIP_VOCABULARY, work / "packages"))
    rank = {merge: i for i, merge in enumerate(merges)}
    used = set(range(_COMMON))
    for word in _words():
        used |= _ranks_that_spell(word, rank)
    kept = [merges[i] for i in sorted(used)]
    letters = _byte_letters()
    pieces = dict.fromkeys("".join(merge) for merge in kept)
    vocabulary = [*letters, *(c + "</w>" for c in letters), *pieces, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(vocabulary)},
        merges=kept,
        model_max_length=MAX_TOKENS,
        pad_token="<|endoftext|>",  # noqa: S106 - a piece of text, no secret
    )


def _clip_merges(wheel: Path) -> list[Merge]:
    (packed,) = packages.read_members(wheel, "open_clip/bpe_simple_vocab_16e6.txt.gz").values()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")[1 : 1 + _CLIP_MERGES]
    return [(left, right) for left, right in (line.split() for line in lines)]


def _words() -> list[str]:
    texts = [*SUBJECTS, *STYLES.values(), *BACKGROUNDS, *KINDS, *PLACES, *SIZES, _OTHER_WORDS]
    return sorted(set(re.findall(r"[a-z]+|[0-9]", " ".join(texts).lower())))


def _ranks_that_spell(word: str, rank: dict[Merge, int]) -> set[int]:
    """Return the ranks of the merges that byte-pair encoding applies to a word (Sennrich et al. 2016)."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    used: set[int] = set()
    while pairs := [pair for pair in itertools.pairwise(pieces) if pair in rank]:
        best = min(pairs, key=rank.__getitem__)
        used.add(rank[best])
        merged: list[str] = []
        for piece in pieces:
            if merged and (merged[-1], piece) == best:
                merged[-1] += piece
            else:
                merged.append(piece)
        pieces = merged
    return used


def _byte_letters() -> list[str]:
    """Return CLIP's letter for each byte: itself where it is printable, else one from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
