"""The ModelSpec of an open checkpoint, whatever its format."""

from __future__ import annotations

from phiquant.architectures import ModelSpec, check_tensors, read_config, spec_from_config
from phiquant.checkpoint import Checkpoint
from phiquant.convert import gguf_spec
from phiquant.errors import FormatError


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
        return gguf_spec(checkpoint)
    config_file = checkpoint.folder / "config.json"
    if not config_file.exists():
        raise FormatError(
            "is missing, and without it weights are only numbers",
            file=config_file,
            remedy="Give the model's whole folder, as it was published.",
        )
    return check_tensors(
        spec_from_config(read_config(config_file), file=config_file),
        {entry.name: (entry.type, entry.shape) for entry in checkpoint.entries.values()},
        file=checkpoint.path,
        config_file=config_file,
    )
