"""Write the seeds of the fuzz targets: small files of the real packages, and one bare header.

Needs the packages gguf, safetensors and numpy. Run from anywhere; the seeds are kept in git.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import gguf
import numpy as np
import safetensors.numpy

CORPUS = Path(__file__).parent / "corpus"


def write_safetensors_seeds(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    two = {"a.weight": np.ones((2, 2), np.float16), "b": np.zeros((0, 3), np.int64)}
    data = safetensors.numpy.save(two, metadata={"format": "pt"})
    (folder / "two").write_bytes(data)
    (folder / "empty").write_bytes(safetensors.numpy.save({}))
    # The target reads a bare header after two bytes of data size.
    json = b'{"\\u00e9\\ud83d\\ude42":{"data_offsets":[0,4],"shape":[],"dtype":"F32"}}'
    (folder / "bare").write_bytes(b"\x04\x00" + json)


def write_gguf_seeds(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "x.gguf"
        writer = gguf.GGUFWriter(path, arch="phi3")
        writer.add_custom_alignment(16)
        writer.add_array("tokens", ["a", "é"])
        writer.add_array("scores", [0.5, -1.0])
        writer.add_bool("flag", True)
        writer.add_float64("f64", 0.1)
        writer.add_tensor("x", np.ones((2, 4), np.float32))
        blocks = np.zeros((1, 34), np.uint8)
        writer.add_tensor("y", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        (folder / "two").write_bytes(path.read_bytes())
    (folder / "empty").write_bytes(b"GGUF\x03\0\0\0" + bytes(16))


if __name__ == "__main__":
    write_safetensors_seeds(CORPUS / "safetensors")
    write_gguf_seeds(CORPUS / "gguf")
