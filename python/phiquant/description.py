"""The ModelSpec of an open checkpoint, whatever its format."""

from __future__ import annotations

import numpy as np

from phiquant.architectures import ModelSpec, check_tensors, read_config, spec_from_config
from phiquant.architectures.from_gguf import spec_from_gguf
from phiquant.checkpoint import Checkpoint
from phiquant.errors import FormatError
from phiquant.hf_folder import describe_compressed
from phiquant.mlx_folder import describe_mlx
from phiquant.onnx_folder import describe_onnx
from phiquant.openvino_folder import describe_openvino


def describe(checkpoint: Checkpoint) -> ModelSpec:
    """What the checkpoint's model is, from its config or its GGUF metadata.

    Raises
    ------
    phiquant.FormatError
        The config is missing, or it, the metadata or the tensors contradict each other.
    phiquant.UnsupportedError
        No Phi model that phiquant knows.
    """
    if checkpoint.format == "gguf":
        return describe_gguf(checkpoint)
    if checkpoint.format == "onnx":
        return describe_onnx(checkpoint)
    if checkpoint.format == "mlx":
        return describe_mlx(checkpoint)
    if checkpoint.format in ("compressed-tensors", "gptq", "awq"):
        return describe_compressed(checkpoint)
    if checkpoint.format == "openvino":
        return describe_openvino(checkpoint)
    return describe_folder(checkpoint)[1]


def describe_folder(checkpoint: Checkpoint) -> tuple[dict[str, object], ModelSpec]:
    """The config of a Hugging Face checkpoint, and the model that it and the tensors make.

    Raises
    ------
    phiquant.FormatError, phiquant.UnsupportedError
        As :func:`describe`.
    """
    config_file = checkpoint.folder / "config.json"
    if not config_file.exists():
        raise FormatError(
            "is missing, and without it weights are only numbers",
            file=config_file,
            remedy="Give the model's whole folder, as it was published.",
        )
    config = read_config(config_file)
    spec = check_tensors(
        spec_from_config(config, file=config_file),
        {entry.name: (entry.type, entry.shape) for entry in checkpoint.entries.values()},
        file=checkpoint.path,
        config_file=config_file,
    )
    return config, spec


def describe_gguf(checkpoint: Checkpoint) -> ModelSpec:
    """The model of an open GGUF.

    Raises
    ------
    phiquant.FormatError, phiquant.UnsupportedError
        As :func:`describe`.
    """
    factors = {}
    for kind in ("long", "short"):
        entry = checkpoint.entries.get(f"rope_factors_{kind}.weight")
        if entry is None:
            continue
        if entry.type != "f32" or len(entry.shape) != 1 or entry.nbytes > 1 << 16:
            raise FormatError("is no short float32 vector", file=checkpoint.path, tensor=entry.name)
        values = np.frombuffer(checkpoint.files[0].read(entry.offset, entry.nbytes), np.float32)
        factors[kind] = tuple(float(value) for value in values)
    shapes = {entry.name: entry.shape for entry in checkpoint.entries.values()}
    return spec_from_gguf(checkpoint.metadata, shapes, factors, file=checkpoint.path)
