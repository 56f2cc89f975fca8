"""Record which types llama-quantize chooses when its options override the mix.

    python make_quantize_overrides.py --llama-quantize PROGRAM --converted FOLDER

FOLDER holds the fixtures as ``NAME.bf16.gguf``, as ``make_converter_metadata.py --keep`` leaves them. Writes
``llama-quantize-overrides.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent

# ftype, options of llama-quantize, the same as arguments of phiquant.recipes.llama_quantize.assign
CASES: list[tuple[str, list[str], dict[str, object]]] = [
    ("Q4_K_M", ["--pure"], {"pure": True}),
    ("Q6_K", ["--pure"], {"pure": True}),
    ("Q4_K_M", ["--output-tensor-type", "q8_0"], {"output_type": "q8_0"}),
    ("Q4_K_M", ["--token-embedding-type", "q8_0"], {"embedding_type": "q8_0"}),
    (
        "Q5_K_S",
        ["--token-embedding-type", "bf16", "--output-tensor-type", "f16"],
        {"embedding_type": "bf16", "output_type": "f16"},
    ),
    ("BF16", ["--token-embedding-type", "f16"], {"embedding_type": "f16"}),
    (
        "Q4_K_M",
        ["--tensor-type", "ffn_down=q8_0"],
        {"overrides": [["*.mlp.down_proj.weight", "q8_0"]]},
    ),
    # The overridden matrix is not counted: the others move up in "every third".
    (
        "Q4_K_M",
        ["--tensor-type", r"blk\.0\.ffn_down=q8_0", "--tensor-type", r"blk\.1\.attn_qkv=q5_0"],
        {
            "overrides": [
                ["model.layers.0.mlp.down_proj.weight", "q8_0"],
                ["model.layers.1.self_attn.qkv_proj.weight", "q5_0"],
            ]
        },
    ),
    (
        "Q4_K_S",
        ["--tensor-type", r"blk\.[01]\.=q6_K", "--tensor-type", "attn_output=q5_0"],
        {"overrides": [["model.layers.[01].*", "q6_k"], ["*.o_proj.*", "q5_0"]]},
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-quantize", type=Path, required=True)
    parser.add_argument("--converted", type=Path, required=True)
    arguments = parser.parse_args()
    cases = []
    for fixture in ("phi35", "phi4mini", "phi3win"):
        for ftype, options, same in CASES:
            source = arguments.converted / f"{fixture}.bf16.gguf"
            run = subprocess.run(
                [arguments.llama_quantize, "--dry-run", *options, source, ftype],
                check=True,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            types = {}
            for line in re.split(r"(?=\[ *\d+/ *\d+\])", run.stdout):
                match = re.match(r"\[ *\d+/ *\d+\] +(\S+) .*type = *(\w+), ", line)
                if match:
                    became = re.search(r"-> +[\d.]+ MiB \((\w+)\)", line)
                    types[match[1]] = (became[1] if became else match[2]).lower()
            cases.append(
                {
                    "fixture": fixture,
                    "ftype": ftype,
                    "options": options,
                    "same": same,
                    "types": types,
                }
            )
    out = {
        "made_with": "llama-quantize --dry-run of llama-cpp-python 0.3.36's llama.cpp",
        "cases": cases,
    }
    (HERE / "llama-quantize-overrides.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
