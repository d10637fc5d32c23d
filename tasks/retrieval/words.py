"""The words that BM25 counts: lower case, no stop words, Chinese cut by jieba.

Words on purpose: LongBench's own retrieval code hands whole strings to rank_bm25, which then counts characters.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable

from longloom.tasks.retrieval.chunkers import CJK

_WORD = re.compile(r"\w+")
_CJK = re.compile(f"[{CJK}]")


def words(text: str) -> list[str]:
    """The words of a text in order: runs of letters, digits and underscores, lower case.

    A run with a Chinese character in it is cut into words by jieba. So "don't" is two words, "3.5" too.
    """
    found: list[str] = []
    for word in _WORD.findall(text.lower()):
        if _CJK.search(word):
            found += _cutter()(word)
        else:
            found.append(word)
    return found


@functools.cache
def _cutter() -> Callable[[str], list[str]]:
    """jieba's, which takes a second to import, when the first Chinese word comes."""
    import jieba

    jieba.setLogLevel(logging.ERROR)  # it tells on stderr about its dictionary otherwise
    cut: Callable[[str], list[str]] = jieba.lcut
    return cut
