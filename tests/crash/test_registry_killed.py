"""A writer that is killed at a random moment leaves a sound registry with every record it kept."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

# Forks writers, which say each record's id once it is kept, and kills each at a random moment after
# some of its words. They come through a pipe, which gives them even after the writer's death.
KILLER = """
import json, os, random, select, signal, sys
from pathlib import Path
from phiquant.registry.records import File, NewModel
from phiquant.registry.store import Registry

chance = random.Random(9)
path, kills = Path(sys.argv[1]), int(sys.argv[2])
files = tuple(File(f"part-{n}", n, n, "00000000", None) for n in range(20))
for number in range(kills):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        n = 0
        while True:
            name = f"/models/{number}-{n}"
            new = NewModel(Path(name), True, "t", 0.0, {"words": "x" * chance.randrange(9000)}, files)
            (kept,) = Registry(path).add([new])
            os.write(writer, f"{kept} {name}\\n".encode())
            n += 1
    os.close(writer)
    words, wanted = b"", chance.randrange(4)
    while words.count(b"\\n") < wanted:
        words += os.read(reader, 65536)
    select.select([], [], [], chance.random() * 0.02)  # within a transaction, which is that long
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while piece := os.read(reader, 65536):
        words += piece
    os.close(reader)
    journal = os.path.exists(f"{path}-journal")
    print(json.dumps([words.decode().splitlines(), journal]), flush=True)
"""


def test_killed_writers_lose_no_record_that_they_kept(tmp_path: Path) -> None:
    file = tmp_path / "models.sqlite"
    command = [sys.executable, "-c", KILLER, str(file), "100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killer:
        assert killer.stdout is not None
        runs = [json.loads(line) for line in killer.stdout]
    assert killer.returncode == 0 and len(runs) == 100
    # Some were killed in the midst of a transaction, else this test would have tested nothing.
    assert sum(journal for _, journal in runs) >= 3
    kept = dict(line.split(" ", 1) for lines, _ in runs for line in lines)
    assert len(kept) > 100
    connection = sqlite3.connect(file)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    there = {str(n): path.decode() for n, path in connection.execute("SELECT id, path FROM models")}
    assert kept.items() <= there.items()
    # Nothing half: each model has all its files, and no file is without its model.
    counts = connection.execute("SELECT model, COUNT(*) FROM files GROUP BY model").fetchall()
    assert {str(n) for n, _ in counts} == set(there) and {count for _, count in counts} == {20}
    connection.close()
