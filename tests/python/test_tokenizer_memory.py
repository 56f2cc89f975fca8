"""A tokenizer of 200 000 tokens and merges is read within 300 MB, everything of the process included."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROWS = 200_064
# Not ru_maxrss on Linux: that begins with what the forked parent had.
READ = """
import pathlib, sys
from phiquant import tokenizer
tok = tokenizer.load(pathlib.Path(sys.argv[1]), vocab_size=int(sys.argv[2]))
entries = tokenizer.gguf_metadata(tok)
status = pathlib.Path("/proc/self/status")
if status.exists():
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    peak = int(line.split()[1]) * 1024
else:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
print(len(tok.tokens), len(tok.merges), peak)
"""


def letters() -> list[str]:
    """The 256 characters of GPT-2's byte-level alphabet."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(c) for c in plain] + [chr(256 + n) for n in range(256 - len(plain))]


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource.getrusage")
def test_a_tokenizer_like_phi_4_minis_fits(tmp_path: Path) -> None:
    source = json.loads(
        (Path(__file__).parents[1] / "data/phi4mini/tokenizer.json").read_text(encoding="utf-8")
    )
    # Every token is an earlier one and a letter, up to 14, some twice o200k's average.
    singles = letters()
    texts = list(singles)
    known = set(texts)
    merges: list[list[str]] = []
    draw = random.Random(0)
    while len(texts) < 200_000:
        left, right = draw.choice(texts), draw.choice(singles)
        if len(left + right) <= 14 and left + right not in known:
            merges.append([left, right])
            texts.append(left + right)
            known.add(left + right)
    source["model"]["vocab"] = {text: index for index, text in enumerate(texts)}
    source["model"]["merges"] = merges
    for index, token in enumerate(source["added_tokens"]):
        token["id"] = len(texts) + index
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(source, ensure_ascii=False, indent=2), encoding="utf-8")
    assert path.stat().st_size > 15_000_000

    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path), str(ROWS)],
        capture_output=True,
        text=True,
        check=True,
    )
    rows, ranks, peak = map(int, done.stdout.split())
    assert rows == ROWS and ranks == len(merges)
    assert peak < 300e6, f"{peak / 1e6:.0f} MB"
