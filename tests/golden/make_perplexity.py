#!/usr/bin/env python3
"""Records what llama-perplexity --kl-divergence prints for presets of the trained fixtures, in llama-perplexity.json.

    make_perplexity.py LLAMA_PERPLEXITY

LLAMA_PERPLEXITY is the program. The base is the F32 GGUF that phiquant writes, the text is data/eval.txt from its
beginning. The KV cache is float32 and flash attention is off. PRESET is the preset's own GGUF; PRESET-decoded is its
weights decoded to float32, which llama.cpp multiplies without rounding activations to blocks.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

import phiquant as pq

GOLDEN = pathlib.Path(__file__).resolve().parent
DATA = GOLDEN.parent / "data"
CONTEXT, CHUNKS = 256, 8
NUMBER = r"(-?[0-9.]+)"
# Key, its error's key, what the program calls it, and what it is divided by.
LINES = (
    ("perplexity", r"Mean PPL\(Q\)", 1),
    ("source_perplexity", r"Mean PPL\(base\)", 1),
    ("perplexity_ratio", r"Mean PPL\(Q\)/PPL\(base\)", 1),
    ("mean_kld", r"Mean    KLD", 1),
    ("max_kld", r"Maximum KLD", 1),
    ("p999_kld", r"99.9%   KLD", 1),
    ("median_kld", r"Median  KLD", 1),
    ("rms_dp", r"RMS Δp", 100),
    ("top1", r"Same top p", 100),
)


def run(program: str, *args: object) -> str:
    """Run the program; gives all that it says."""
    shared = ("-c", CONTEXT, "-b", CONTEXT, "-ctk", "f32", "-ctv", "f32", "-fa", "off", "-t", 1)
    command = [program, *map(str, (*shared, *args))]
    done = subprocess.run(
        command, cwd=DATA, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.exit(done.stdout)
    # The program's logger may end before it has written all lines: ask again.
    whole = "--kl-divergence" not in args or "Same top p:" in done.stdout
    return done.stdout if whole else run(program, *args)


def numbers(text: str) -> dict[str, float]:
    """The statistics at the end of what the program said."""
    found = {}
    for key, words, unit in LINES:
        match = re.search(rf"^{words}\s*:\s*{NUMBER}(?: ±\s*{NUMBER})?", text, re.MULTILINE)
        if match is None:
            sys.exit(f"there is no {words} in\n{text}")
        found[key] = float(match[1]) / unit
        if match[2]:
            found[f"{key}_error"] = float(match[2]) / unit
    return found


def main() -> None:
    [program] = sys.argv[1:]
    recorded: dict[str, object] = {"context": CONTEXT, "windows": CHUNKS}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for fixture in ("phi35", "phi4mini"):
            base, logits = folder / f"{fixture}-f32.gguf", folder / f"{fixture}.logits"
            pq.convert(DATA / fixture, "f32", base)
            run(
                program,
                "-m",
                base,
                "-f",
                "eval.txt",
                "--chunks",
                CHUNKS,
                "--kl-divergence-base",
                logits,
            )
            models = {}
            for preset in ("q8_0", "q5_k_m", "q4_k_m", "q4_0"):
                models[preset] = folder / f"{fixture}-{preset}.gguf"
                pq.convert(DATA / fixture, preset, models[preset])
                decoded = folder / f"{fixture}-{preset}-decoded.gguf"
                pq.convert(models[preset], "f32", decoded, requantize=True)
                models[f"{preset}-decoded"] = decoded
            recorded[fixture] = {
                kind: numbers(
                    run(program, "-m", path, "--kl-divergence", "--kl-divergence-base", logits)
                )
                for kind, path in models.items()
            }
    (GOLDEN / "llama-perplexity.json").write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
