#!/usr/bin/env python3
"""Records what llama-imatrix computes for the fixtures, as imatrix-FIXTURE.gguf and, in the old format, .dat.

    make_imatrix.py LLAMA_IMATRIX [FIXTURE ...]

LLAMA_IMATRIX is the program. The models are F32 GGUFs that phiquant writes, the text is data/eval.txt from its
beginning. The KV cache is float32 and flash attention is off, so that what separates the results from the reference
run is the order of float32 sums. phi3win has windows of 32 tokens: llama.cpp's phi3 ignores the sliding window, and
32 is below it. imatrix-phi4mini-default.gguf is from a BF16 GGUF with the program's default options and 8 chunks.
"""

import pathlib
import subprocess
import sys
import tempfile

import phiquant as pq

GOLDEN = pathlib.Path(__file__).resolve().parent
DATA = GOLDEN.parent / "data"
CONTEXT = {"phi35": (256, 12), "phi4mini": (256, 12), "phi3win": (32, 64)}


def record(program: str, fixture: str, folder: pathlib.Path) -> None:
    """Run the program on one fixture."""
    model = folder / f"{fixture}.gguf"
    pq.convert(DATA / fixture, "f32", model)
    context, chunks = CONTEXT[fixture]
    for suffix, format in ((".gguf", "gguf"), (".dat", "dat")):
        if suffix == ".dat" and fixture != "phi3win":
            continue
        command = [
            *(program, "-m", str(model), "-f", "eval.txt", "-c", str(context), "-b", str(context)),
            *(
                "--chunks",
                str(chunks),
                "-ctk",
                "f32",
                "-ctv",
                "f32",
                "-fa",
                "off",
                "--no-ppl",
                "-t",
                "1",
            ),
            *("--output-format", format, "-o", str(GOLDEN / f"imatrix-{fixture}{suffix}")),
        ]
        subprocess.run(command, check=True, cwd=DATA)


def record_default(program: str, folder: pathlib.Path) -> None:
    """Run the program as people do."""
    model = folder / "phi4mini-bf16.gguf"
    pq.convert(DATA / "phi4mini", "bf16", model)
    out = GOLDEN / "imatrix-phi4mini-default.gguf"
    command = [program, "-m", str(model), "-f", "eval.txt", "--chunks", "8", "-o", str(out)]
    subprocess.run(command, check=True, cwd=DATA)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for name in sys.argv[2:] or list(CONTEXT):
            record(sys.argv[1], name, pathlib.Path(temporary))
        record_default(sys.argv[1], pathlib.Path(temporary))
