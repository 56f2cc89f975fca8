"""The C++ core. Private: it may change with any version; ``phiquant`` has the public names."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

version: str

# The codec table and the kernels.
def codecs() -> list[dict[str, Any]]: ...
def made_codec(name: str) -> dict[str, Any] | None: ...
def planes(codec: str, rows: int, columns: int) -> list[tuple[str, int, int, int]]: ...
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
def onnx_types() -> list[tuple[int, str, int]]: ...
def parse_onnx(file: NDArray[np.uint8]) -> dict[str, Any]: ...
def write_onnx(model: dict[str, Any]) -> bytes: ...

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
def quantize_planes(
    tensor: object,
    codec: str,
    threads: int,
    progress: Callable[[int], None] | None = None,
    importance: NDArray[np.float32] | None = None,
    best: bool = False,
) -> list[NDArray[np.uint8]]: ...
def dequantize_planes(
    planes: Sequence[NDArray[Any]],
    codec: str,
    rows: int,
    columns: int,
    threads: int,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]: ...
def unpack_planes(
    planes: Sequence[NDArray[Any]], codec: str, rows: int, columns: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]: ...
def encode_affine(
    codec: str,
    values: NDArray[np.float32],
    arch: str | None = None,
    importance: NDArray[np.float32] | None = None,
    best: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]: ...
def tensor_facts(tensor: object) -> dict[str, Any]: ...

# Plans.
def execute(
    sources: Sequence[tuple[bytes, int, int, int, int] | NDArray[np.uint8]],
    tensors: Sequence[
        tuple[
            str,
            int,
            Sequence[tuple[str, int, Sequence[tuple[int, int]]]],
            Sequence[
                tuple[str, Sequence[tuple[int, int]], int, int, int, bool, int, int, str, str]
            ],
        ]
    ],
    files: Sequence[tuple[bytes, int, Sequence[tuple[int, bytes]], int]],
    folders: Sequence[tuple[bytes, Sequence[bytes]]],
    vectors: Sequence[NDArray[np.float32]],
    threads: int,
    overwrite: bool,
    progress: Callable[[int], None] | None = None,
    inspect: Callable[[list[str]], None] | None = None,
) -> dict[str, Any]: ...
def scratch_bytes(columns: int, whole_rows: bool, wide: Sequence[str]) -> int: ...
def write_file(
    path: bytes, size: int, pieces: Sequence[tuple[int, Any]], overwrite: bool
) -> None: ...
