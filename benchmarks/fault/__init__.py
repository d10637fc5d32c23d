"""The faults of `make faults`: each is a function of an empty folder, which returns a row of the table."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # for the browser and the stack of tests/
