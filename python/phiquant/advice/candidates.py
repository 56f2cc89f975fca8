"""What each kind of device runs, as the docs of the formats say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Candidate:
    """A target that a device may run.

    Attributes
    ----------
    target : str
    runtime : str
        What runs it there.
    why : str
        Why this target for this device.
    page : str
        The page of the docs that the reason stands on.
    cache : float
        Bytes of each value in the runtime's cache of keys and values.
    measured_as : str
        The target under which measurements are recorded.
    """

    target: str
    runtime: str
    why: str
    page: str
    cache: float
    measured_as: str


#: What each device is, in the order in which they are listed.
DEVICES: Final = {
    "phone": "a phone",
    "laptop": "a laptop's processor and graphics chip",
    "mac": "a Mac with Apple's chip",
    "npu": "a laptop with Intel's NPU",
    "cpu": "a desktop's or server's processor",
    "gpu": "a GPU server",
}

_GGUF = (
    *("bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q4_0", "iq4_nl", "iq4_xs"),
    *("q3_k_l", "q3_k_m", "q3_k_s", "iq3_xxs", "iq2_m", "iq2_xs", "iq1_m"),
)
_MLX = (
    *("bf16", "8bit", "6bit", "5bit", "mixed_4_6", "4bit,group=32", "4bit", "mixed_3_6"),
    *("3bit", "2bit"),
)
_ONNX = ("int8", "int4,mixed", "int4,asym", "int4", "int4,block=128")


def _same(target: str, runtime: str, why: str, page: str) -> Candidate:
    return Candidate(target, runtime, why, page, 2, target)


def _gguf(why: str) -> list[Candidate]:
    page = "docs/formats/gguf.md"
    return [_same(f"gguf:{name}", "llama.cpp", why, page) for name in _GGUF]


def _onnx(why: str, provider: str = "cpu") -> list[Candidate]:
    found = []
    for name in ("fp16", "int8", "int4,mixed", "int4") if provider != "cpu" else _ONNX:
        target = f"onnx:{name}" if provider == "cpu" else f"onnx:{name},ep={provider}"
        # On processors ONNX Runtime keeps keys and values in float32.
        size = 4 if provider == "cpu" else 2
        page = "docs/formats/onnx.md"
        found.append(Candidate(target, "ONNX Runtime GenAI", why, page, size, f"onnx:{name}"))
    return found


def _openvino(names: tuple[str, ...], why: str, cache: float) -> list[Candidate]:
    page = "docs/formats/openvino.md"
    # The preset's own group is recorded under the preset's name.
    return [
        Candidate(
            f"openvino:{name}",
            "OpenVINO",
            why,
            page,
            cache,
            f"openvino:{name.removesuffix(',group=128')}",
        )
        for name in names
    ]


def _hf(names: tuple[str, ...], why: str) -> list[Candidate]:
    return [_same(f"hf:{name}", "vLLM", why, "docs/formats/hf.md") for name in names]


_LLAMA = "llama.cpp runs it, and every program that is built on it"
_OPENVINO_CPU = ("fp16", "int8", "int8_sym", "int4_sym,group=32", "int4_asym", "int4_sym")


def candidates(device: str) -> list[Candidate]:
    """What a device may run, whatever the memory."""
    if device == "phone":
        return [*_gguf(_LLAMA), *_onnx("ONNX Runtime GenAI runs it on processors")]
    if device == "mac":
        why = "mlx-lm runs it on Apple's chips"
        page = "docs/formats/mlx.md"
        mlx = [_same(f"mlx:{name}", "mlx-lm", why, page) for name in _MLX]
        return [*mlx, *_gguf(_LLAMA)]
    if device == "npu":
        why = "Intel's NPU plugin wants 4 bits without zero points, in groups of 128 or whole rows"
        # An NPU's cache is taken for float16, as nothing was measured there.
        return _openvino(("int4_sym,group=128", "int4_sym,group=channel"), why, 2)
    if device == "gpu":
        return [
            *_hf(("bf16",), "vLLM and transformers load it as it is"),
            *_hf(("w8a8", "fp8"), "8-bit activations are for many requests at once, in vLLM"),
            *_hf(("w8a16", "w2a16"), "vLLM runs packed weights of this width on GPUs"),
            *_hf(("w4a16,group=32", "w4a16"), "vLLM runs packed 4-bit weights"),
            *_hf(("mxfp4",), "vLLM runs it on GPUs"),
            *_onnx("ONNX Runtime GenAI runs it with CUDA", "cuda"),
            *_gguf(_LLAMA),
        ]
    found = [
        *_gguf(_LLAMA),
        *_openvino(_OPENVINO_CPU, "OpenVINO runs it on processors", 1),
        *_onnx("ONNX Runtime GenAI runs it on processors"),
    ]
    if device == "laptop":
        found += _onnx("ONNX Runtime GenAI runs it on Windows graphics, by DirectML", "dml")
    return found
