"""JSON that others wrote: whatever its bytes are, a value or one line that says what is wrong and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class NotJson(ValueError):
    """Why a text is no JSON, in a few words.

    Attributes:
        line: where it stops being JSON, from 1.
    """

    def __init__(self, reason: str, line: int = 1) -> None:
        super().__init__(reason)
        self.line = line


def parse_json(text: str) -> Any:
    """The value of a JSON text. Every string in it can be written as UTF-8.

    Raises:
        NotJson: no JSON; a whole number of thousands of digits; brackets nested too deeply; a lone surrogate, which
            JSON can write (\\ud800) and UTF-8 cannot.
    """
    try:
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise NotJson(error.msg, error.lineno) from None
    except UnicodeEncodeError:
        raise NotJson("a lone surrogate in a string") from None
    except RecursionError:
        raise NotJson("brackets nested too deeply") from None
    except ValueError:
        raise NotJson("a number of too many digits") from None
    return value


def well_formed(text: str) -> str:
    """The text with surrogates joined where they are pairs, and U+FFFD for each lone one, so that UTF-8 can hold it."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def read_json(path: Path, *, expected: str) -> Any:
    """The value of a JSON file; a byte order mark before it is passed over.

    Args:
        path: the file.
        expected: what it should hold, for errors.

    Raises:
        ValueError: it cannot be read, is no UTF-8 or no JSON (see `parse_json`); names file and line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; expected {expected}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}), expected {expected}") from None
    try:
        return parse_json(text)
    except NotJson as error:
        raise ValueError(f"{path}:{error.line}: is not JSON ({error}), expected {expected}") from None
