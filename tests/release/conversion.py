#!/usr/bin/env python3
"""Convert a tiny model with the phiquant that is installed; prints the SHA-256 of every file that came out, as JSON.

    python tests/release/conversion.py MODEL_FOLDER

For wheels: needs nothing but phiquant, and writes into the current folder.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

TARGETS = ("gguf:q4_k_m", "mlx:4bit")


def main() -> None:
    model, out = Path(sys.argv[1]).resolve(), Path("converted")
    out.mkdir(exist_ok=True)
    program = Path(sys.executable).with_name("phiquant")  # the wheel's own command
    words = [word for target in TARGETS for word in ("--to", target)]
    subprocess.run(
        [str(program), "convert", str(model), *words, "-o", f"{out}/", "--overwrite", "-q"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    files = sorted(path for path in out.rglob("*") if path.is_file())
    digests = {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    for path in files:
        subprocess.run(
            [str(program), "inspect", str(path if path.suffix == ".gguf" else path.parent)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    if not {".gguf", ".safetensors"} <= {path.suffix for path in files}:
        raise SystemExit(f"not what was asked for: {', '.join(digests)}")
    json.dump(digests, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
