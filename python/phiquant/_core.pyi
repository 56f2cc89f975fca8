"""The C++ core. Private: it may change with any version; ``phiquant`` has the public names."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

version: str
scratch_bytes: int

# The codec table and the kernels.
def codecs() -> list[dict[str, Any]]: ...
def active_arch() -> str: ...
def available_archs() -> list[str]: ...
def encode_blocks(
    codec: str,
    values: NDArray[np.float32],
    arch: str | None = None,
    out: NDArray[np.uint8] | None = None,
    importance: NDArray[np.float32] | None = None,
    best: bool = False,
) -> NDArray[np.uint8]: ...
def decode_blocks(
    codec: str,
    blocks: NDArray[np.uint8],
    columns: int,
    arch: str | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]: ...
def block_bytes(codec: str, rows: int, columns: int) -> int: ...
def crc32c(bytes: bytes) -> int: ...

# Containers.
def safetensors_header_length(prefix: bytes, file_size: int) -> int: ...
def parse_safetensors(
    header: bytes, file_size: int
) -> tuple[list[tuple[str, str, tuple[int, ...], int, int]], dict[str, str]]: ...
def write_safetensors_header(
    tensors: Sequence[tuple[str, str, Sequence[int]]], metadata: dict[str, str]
) -> bytes: ...
def safetensors_dtypes() -> list[tuple[str, int]]: ...
def parse_gguf(start: bytes, file_size: int) -> dict[str, Any] | None: ...
def write_gguf_header(
    metadata: Sequence[tuple[str, str, Any]],
    tensors: Sequence[tuple[str, Sequence[int], int]],
    alignment: int = 32,
) -> tuple[bytes, list[int], int]: ...
def ggml_types() -> list[tuple[int, str, int, int]]: ...

# Tensors in memory.
def quantize(
    tensor: object,
    codec: str,
    threads: int,
    progress: Callable[[int], None] | None = None,
    importance: NDArray[np.float32] | None = None,
    best: bool = False,
) -> NDArray[np.uint8]: ...
def dequantize(
    blocks: NDArray[np.uint8],
    codec: str,
    shape: Sequence[int],
    threads: int,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]: ...
def tensor_facts(tensor: object) -> dict[str, Any]: ...

# Plans.
def execute(
    sources: Sequence[tuple[bytes, int, int, int, int]],
    tensors: Sequence[
        tuple[
            str, int, Sequence[tuple[int, str, int, int]], Sequence[tuple[str, int, int, int, bool]]
        ]
    ],
    files: Sequence[tuple[bytes, int, Sequence[tuple[int, bytes]]]],
    importances: Sequence[NDArray[np.float32]],
    threads: int,
    overwrite: bool,
    measure: bool,
    progress: Callable[[int], None] | None = None,
    inspect: Callable[[list[str]], None] | None = None,
) -> dict[str, Any]: ...
def write_file(
    path: bytes, size: int, pieces: Sequence[tuple[int, Any]], overwrite: bool
) -> None: ...
