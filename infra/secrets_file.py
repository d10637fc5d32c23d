"""Writes `infra/.env` with new passwords for compose.yaml; one that is there stays.

    python infra/secrets_file.py

The file is the owner's alone, is no part of the repository (.gitignore) or of an image (*.dockerignore).
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

PLACE = Path(__file__).resolve().parent / ".env"
#: Hexadecimal, since they become parts of addresses, where other characters would have to be quoted.
NAMES = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY")
OPTIONS = """
# GPU workers, of a GPU each: 0, 1 with `--profile gpu`, 2 with `--profile gpus`.
LONGLOOM_GPUS=0
# The port of the UI on this host's loopback interface; 4200 if it is not set.
#LONGLOOM_PORT=4200
# Where people find the UI, if a proxy stands before it; without a slash at the end.
#LONGLOOM_URL=https://prefect.example
# Where failed runs are told of: a URL that takes {"text": ...}, such as an incoming webhook of Slack or Mattermost.
LONGLOOM_WEBHOOK=
# Of the OpenAI-compatible endpoint that evaluate, rag and judge may ask.
OPENAI_API_KEY=
"""


def write(place: Path) -> None:
    """Writes the file.

    Raises:
        FileExistsError: there is one; other passwords would lock its database out.
    """
    lines = [f"{name}={secrets.token_hex(24)}" for name in NAMES]
    lines.append(f"PREFECT_AUTH=admin:{secrets.token_hex(24)}")
    with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n" + OPTIONS)


def main() -> int:
    """Exit code 2 when the file is there."""
    try:
        write(PLACE)
    except FileExistsError:
        print(f"{PLACE}: is there, and stays; delete it for new passwords", file=sys.stderr)
        return 2
    print(f"{PLACE}: written; PREFECT_AUTH is the user and password of the UI")
    return 0


if __name__ == "__main__":
    sys.exit(main())
