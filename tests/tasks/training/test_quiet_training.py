"""On the command line, loading, adapting and saving a model print nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from longloom.flows.runtime import quiet
quiet()
from longloom.kernels.huggingface.load import load_model
from longloom.tasks.training.finetune import with_lora
model, tokenizer = load_model(sys.argv[1])
adapted = with_lora(model, rank=2, alpha=4, dropout=0.0)
adapted.save_pretrained(sys.argv[2])
adapted.merge_and_unload().save_pretrained(sys.argv[2])
tokenizer("more than the window " * 200)
"""


def test_no_bars_and_no_warnings(model_folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model_folder), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "model.safetensors").is_file()
