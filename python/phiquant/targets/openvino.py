"""The OpenVINO target: from a model and a preset to a folder that openvino_genai runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from phiquant import _core, openvino
from phiquant.architectures import ModelSpec
from phiquant.checkpoint import Checkpoint
from phiquant.codecs import find_codec
from phiquant.errors import InternalError
from phiquant.measure.columns import column_magnitudes
from phiquant.measure.rounding import row_errors
from phiquant.plan import PlannedFile, PlannedTarget, PlannedTensor
from phiquant.targets.folder import folder_target
from phiquant.targets.gguf_metadata import SourceFacts
from phiquant.targets.modelfile import eos_ids
from phiquant.targets.names import Target
from phiquant.targets.openvino_awq import Scaling
from phiquant.targets.openvino_graph import Graph
from phiquant.targets.openvino_model import decoder
from phiquant.targets.openvino_options import Settings, mixed, settings_of
from phiquant.targets.openvino_tokenizer import detokenizer_graph, information, tokenizer_graph
from phiquant.targets.source_files import copied_files
from phiquant.tensor import check_best
from phiquant.tokenizer import Tokenizer

MODEL: Final = "openvino_model"
TOKENIZER: Final = "openvino_tokenizer"
DETOKENIZER: Final = "openvino_detokenizer"

# What NNCF compares layers at, before it stores the scale as a half.
_BACKUP = "int8_asym_channel,rule=nncf,scales=f32"


def plan_openvino(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    facts: SourceFacts,
    tokenizer: Tokenizer,
    target: Target,
    *,
    best: bool = False,
    overrides: Iterable[tuple[str, str]] = (),
    importance: Mapping[str, NDArray[np.float32]] | None = None,
) -> PlannedTarget:
    """Plan the OpenVINO folder of a Hugging Face checkpoint.

    Parameters
    ----------
    best : bool
        Search scales and zero points for the least squared error.
    overrides : iterable of (glob, name)
        On source tensor names; see :func:`phiquant.targets.openvino_options.settings_of`.
    importance : mapping of str to float32 array, optional
        Weights of columns by source tensor name, for ``best``.

    Raises
    ------
    phiquant.UsageError, phiquant.UnsupportedError, phiquant.FormatError
        Options that make no sense, a tokenizer that OpenVINO's operations cannot be, missing files.
    """
    settings = settings_of(target, spec, overrides)
    if settings.ratio < 1:
        names = [t.source for t in spec.tensors if t.layer is not None and len(t.shape) == 2]
        settings = mixed(settings, spec, row_errors(checkpoint, names, _BACKUP))
    notes = settings.notes
    magnitudes = {}
    if downs := [tensor.source for tensor in settings.scaled(spec)]:
        magnitudes = column_magnitudes(checkpoint, downs)
        where = "in the rows before them" if best else "by a Multiply, as NNCF has it"
        notes = (*notes, f"AWQ without data: down projections' columns are scaled, undone {where}")
    scaling = Scaling(checkpoint, spec, magnitudes, best)
    if importance and not best:
        notes = (*notes, "NNCF's rule heeds no importance: it needs quality='best'")
    graph = decoder(spec, settings.encoding, scaling.input_scales)
    files = [
        *_model_files(graph, spec, settings, target, scaling, importance or {}),
        *_tokenizer_files(TOKENIZER, tokenizer, checkpoint, spec),
        *_tokenizer_files(DETOKENIZER, tokenizer, checkpoint, spec),
    ]
    texts = copied_files(checkpoint.folder)
    texts["config.json"] = _json(facts.config)
    if "generation_config.json" not in texts:
        texts["generation_config.json"] = _json(_generation(facts, tokenizer))
    if "chat_template.jinja" not in texts and tokenizer.chat_template is not None:
        texts["chat_template.jinja"] = tokenizer.chat_template.encode()
    return folder_target(target, facts.name, files, texts, notes=notes, check=_check, hint=_hint)


def _model_files(
    graph: Graph,
    spec: ModelSpec,
    settings: Settings,
    target: Target,
    scaling: Scaling,
    importance: Mapping[str, NDArray[np.float32]],
) -> list[PlannedFile]:
    tensors = []
    best = scaling.best
    by_source = spec.by_source()
    stored = [item for item in graph.stored() if item.source]
    for item in stored:
        role = by_source[item.source]
        encoding = settings.encoding(role)
        codec = find_codec(encoding.codec)
        planes = codec.planes(*role.shape) if codec.has_planes else ()
        if planes and planes[item.plane].nbytes != item.nbytes:
            raise InternalError("a plane is not as the graph has it", tensor=item.label)
        searched = best and encoding.bits < 16
        if searched:
            check_best(codec, tensor=item.source)
        weights = importance.get(item.source) if searched else None
        tensors.append(
            PlannedTensor(
                item.label,
                item.source,
                codec.name,
                role.shape if item.plane == 0 else item.shape,
                item.offset,
                item.nbytes,
                importance=scaling.importance(role, weights),
                best=searched,
                plane=item.plane,
                column_scale=scaling.columns.get(item.source),
                row_scale=scaling.rows.get(item.source),
                scaled_in=scaling.scaled_in(item.source),
            )
        )
    # The graph is made for halves where it says so: NNCF and optimum-intel write both settings.
    options = [("ACTIVATIONS_SCALE_FACTOR", "8.0")]
    if settings.matrix.bits == 16:
        options.append(("KV_CACHE_PRECISION", "f16"))
    text = graph.xml(
        [
            ("runtime_options", options),
            ("phiquant", [("version", _core.version), ("target", str(target))]),
        ]
    ).encode()
    size = stored[-1].offset + stored[-1].nbytes
    return [
        PlannedFile(f"{MODEL}.xml", len(text), text, ()),
        PlannedFile(f"{MODEL}.bin", size, graph.binary(), tuple(tensors)),
    ]


def _tokenizer_files(
    name: str, tokenizer: Tokenizer, checkpoint: Checkpoint, spec: ModelSpec
) -> list[PlannedFile]:
    if name == TOKENIZER:
        graph = tokenizer_graph(tokenizer, checkpoint.folder, max_length=spec.context)
    else:
        graph = detokenizer_graph(tokenizer)
    text, data = graph.xml(information(tokenizer)).encode(), graph.binary()
    return [
        PlannedFile(f"{name}.xml", len(text), text, ()),
        PlannedFile(f"{name}.bin", len(data), data, ()),
    ]


def _generation(facts: SourceFacts, tokenizer: Tokenizer) -> dict[str, Any]:
    """What generation needs to know, for sources that don't say it in a file of its own."""
    made: dict[str, Any] = {"eos_token_id": list(eos_ids(facts.config, facts.generation))}
    for role in ("bos", "pad"):
        if role in tokenizer.special_ids:
            made[f"{role}_token_id"] = tokenizer.special_ids[role]
    return made


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _hint(path: Path) -> str:
    code = (
        f"from openvino_genai import LLMPipeline; "
        f"print(LLMPipeline({str(path)!r}, 'CPU').generate('Hello', max_new_tokens=64))"
    )
    return f"python -c {shlex.quote(code)}"


def _check(path: Path, file: PlannedFile) -> None:
    """Reopen the staged file; hold every constant of a graph against the plan of its weights."""
    if path.stat().st_size != file.size:
        raise InternalError("the written file is not as planned")
    if path.suffix == ".xml":
        openvino.read_network(path)
    elif file.name == f"{MODEL}.bin":
        network = openvino.read_network(path.with_suffix(".xml"))
        places = {
            layer.name: (layer.constant.offset, layer.constant.nbytes)
            for layer in network.constants()
            if layer.constant is not None
        }
        for tensor in file.tensors:
            if places.get(tensor.name) != (tensor.offset, tensor.nbytes):
                raise InternalError("the written graph is not as planned", tensor=tensor.name)
