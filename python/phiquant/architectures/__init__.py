"""What a config says its model is: one file an architecture, each making a ModelSpec."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from phiquant.architectures import phi3
from phiquant.architectures.checks import FLOAT_DTYPES, check_tensors
from phiquant.architectures.spec import (
    Attention,
    LongRope,
    Mlp,
    ModelSpec,
    Norm,
    Role,
    Rope,
    TensorRole,
)
from phiquant.errors import FormatError, UnsupportedError
from phiquant.strict_json import read_json

__all__ = [
    "ARCHITECTURES",
    "FLOAT_DTYPES",
    "Attention",
    "LongRope",
    "Mlp",
    "ModelSpec",
    "Norm",
    "Role",
    "Rope",
    "TensorRole",
    "check_tensors",
    "read_config",
    "read_json",
    "spec_from_config",
]

#: What can be read: the first entry of the config's ``architectures``, and the function that makes
#: a spec.
ARCHITECTURES: Mapping[str, Callable[[Mapping[str, object], str], ModelSpec]] = {
    "Phi3ForCausalLM": phi3.spec_from_config,
}

_SUPPORTED = (
    "Supported is Phi3ForCausalLM: Phi-3-mini, Phi-3-medium, Phi-3.5-mini, Phi-4, Phi-4-mini "
    "and their fine-tunes."
)

# Relatives that people may well try, and what makes them different.
_RELATIVES = {
    "PhiForCausalLM": "Phi-1, Phi-1.5 and Phi-2, another architecture",
    "Phi3SmallForCausalLM": "Phi-3-small, with blocksparse attention",
    "Phi3VForCausalLM": "Phi-3-vision and Phi-3.5-vision, with images",
    "PhiMoEForCausalLM": "Phi-3.5-MoE, a mixture of experts",
    "PhimoeForCausalLM": "Phi-3.5-MoE, a mixture of experts",
    "Phi4MMForCausalLM": "Phi-4-multimodal, with images and sound",
    "Phi4MultimodalForCausalLM": "Phi-4-multimodal, with images and sound",
    "Phi4ForCausalLMV": "Phi-4 with images",
    "Phi4FlashForCausalLM": "Phi-4-mini-flash, with state-space layers",
    "Phi3Model": "Phi-3 without its output layer",
    "Phi3ForSequenceClassification": "a classifier, which writes no text",
    "Phi3ForTokenClassification": "a classifier, which writes no text",
}


def read_config(path: str | os.PathLike[str]) -> dict[str, object]:
    """Read a ``config.json``: strict JSON of at most 16 MB.

    Raises
    ------
    phiquant.FormatError
        See :func:`phiquant.strict_json.read_json`.
    """
    return read_json(path)


def spec_from_config(config: Mapping[str, object], *, file: object = "config.json") -> ModelSpec:
    """Describe the model of a Hugging Face config.

    Parameters
    ----------
    config : mapping
        What :func:`read_config` gave.
    file : optional
        Named in errors.

    Raises
    ------
    phiquant.UnsupportedError
        Another architecture, a quantized source, or settings that phiquant does not build.
    phiquant.FormatError
        A config that contradicts itself.
    """
    architecture = _architecture(config, file)
    make = ARCHITECTURES.get(architecture)
    if make is None:
        what = _RELATIVES.get(architecture)
        cause = f"the architecture {architecture}" + (f" ({what})" if what else "")
        raise UnsupportedError(f"{cause} is not supported", file=file, remedy=_SUPPORTED)
    for key in ("quantization_config", "compression_config"):
        if config.get(key) is not None:
            cause = f"the source is quantized already ({_method(config[key])})"
            remedy = "Convert the model's original weights."
            raise UnsupportedError(cause, file=file, remedy=remedy)
    return make(config, str(file))


def _architecture(config: Mapping[str, object], file: object) -> str:
    names = config.get("architectures")
    if names is None:
        raise FormatError("architectures is missing", file=file, remedy=_SUPPORTED)
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        cause = "architectures is not an array that begins with a name"
        raise FormatError(cause, file=file, remedy=_SUPPORTED)
    return names[0][:100]


def _method(settings: object) -> str:
    if isinstance(settings, dict):
        for key in ("quant_method", "quant_algo", "format"):
            if isinstance(settings.get(key), str):
                return f"{key} {settings[key][:40]}"
    return "it has a quantization_config"
