"""Memory stays bounded by the workers' tiles, whatever the model's size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

# The process's own peak: ru_maxrss would count what its parent had when it forked.
CONVERT = """
import sys, phiquant as pq
pq.convert(sys.argv[1], ["q4_k_m", "q8_0"], sys.argv[2], threads=2)
status = open("/proc/self/status").read()
print(status.split("VmHWM:")[1].split()[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_model_of_900_mb_converts_in_300_mb(tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    out.mkdir()
    make = TESTS / "benchmarks" / "make_full_size.py"
    tokenizer = TESTS / "data" / "phi35"
    subprocess.run(
        [
            sys.executable,
            str(make),
            str(model),
            "--layers",
            "2",
            "--tokenizer-from",
            str(tokenizer),
        ],
        check=True,
    )
    source_bytes = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    assert source_bytes > 800e6
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, str(model), str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) * 1024 < 300e6
