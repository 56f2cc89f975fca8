"""The ONNX target: from a model and a preset to a folder that ONNX Runtime GenAI runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from phiquant import _core
from phiquant import onnx as onnx_format
from phiquant.architectures import ModelSpec
from phiquant.checkpoint import Checkpoint
from phiquant.codecs import find_codec
from phiquant.errors import InternalError, UnsupportedError
from phiquant.onnx import Model, Place, Tensor, nbytes_of, next_place
from phiquant.onnx_folder import CONFIG, SOURCE_CONFIG
from phiquant.plan import PlannedFile, PlannedTarget, PlannedTensor
from phiquant.strict_json import read_json
from phiquant.targets.folder import folder_target
from phiquant.targets.gguf_metadata import SourceFacts
from phiquant.targets.names import Target
from phiquant.targets.onnx_config import genai_config
from phiquant.targets.onnx_graph import ModelGraph, model_graph
from phiquant.targets.onnx_matrices import Stored
from phiquant.targets.onnx_options import Settings, grids_of, settings_of
from phiquant.targets.source_files import copied_files
from phiquant.tensor import check_best

MODEL: Final = "model.onnx"
DATA: Final = "model.onnx.data"

#: ONNX Runtime GenAI reads these two, and a template if there is one; the rest is of no use to it.
_UNUSED: Final = ("generation_config.json", "vocab.json", "merges.txt", "tokenizer.model")


def plan_onnx(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    facts: SourceFacts,
    target: Target,
    *,
    best: bool = False,
    overrides: Iterable[tuple[str, str]] = (),
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> PlannedTarget:
    """Plan the ONNX folder of a Hugging Face checkpoint.

    Parameters
    ----------
    facts : SourceFacts
    best : bool
        Search scales and zero points for the least squared error.
    overrides : iterable of (glob, codec)
        On source tensor names; see :func:`phiquant.targets.onnx_options.grids_of`.
    importance : mapping of str to float32 array, optional
        Weights of columns by source tensor name, for ``best``.
    progress : bool or callable
        Of the calibration that ``int8-static`` needs.

    Raises
    ------
    phiquant.UsageError, phiquant.UnsupportedError, phiquant.FormatError
        Options or globs that make no sense, a model without a tokenizer that ONNX Runtime GenAI
        reads.
    """
    settings = settings_of(target)
    grids = grids_of(spec, settings, tuple(overrides))
    ranges = None
    if settings.classic == "static":
        # The forward pass is for few: it is loaded when it is asked for.
        from phiquant.measure.ranges import TOKENS, activation_ranges

        ranges = activation_ranges(
            checkpoint,
            spec,
            percentile=settings.ranges == "percentile",
            text=settings.text,
            tokens=settings.tokens or TOKENS,
            progress=progress,
        )
    made = model_graph(spec, settings, grids, ranges)
    tensors, planned, size = _placed(made, best, importance or {})
    model = Model(
        made.placed(tensors),
        metadata={
            "phiquant.version": _core.version,
            "phiquant.target": str(_told(target)),
            "phiquant.source": facts.name,
            "phiquant.quality": "best" if best else "reference",
            SOURCE_CONFIG: _config_text(facts.config),
        },
    ).to_bytes()
    config = genai_config(
        spec,
        facts.config,
        facts.generation,
        provider=settings.provider,
        filename=MODEL,
        positions=any(info.name == "position_ids" for info in made.graph.inputs),
    )
    files = [
        PlannedFile(DATA, size, b"", planned),
        PlannedFile(MODEL, len(model), model, ()),
        PlannedFile(CONFIG, len(config), config, ()),
    ]
    return folder_target(
        target,
        facts.name,
        files,
        _tokenizer(checkpoint),
        notes=_notes(settings),
        check=_check,
        hint=_hint,
    )


def _placed(
    made: ModelGraph, best: bool, importance: Mapping[str, NDArray[np.float32]]
) -> tuple[dict[str, Tensor], tuple[PlannedTensor, ...], int]:
    """Each stored constant as the graph and as the plan have it, and the data's size."""
    tensors: dict[str, Tensor] = {}
    planned = []
    end = 0
    for item in made.stored:
        nbytes = nbytes_of(item.dtype, item.shape)
        offset = next_place(end, nbytes)
        end = offset + nbytes
        place = Place(DATA, offset, nbytes)
        tensors[item.name] = Tensor(item.name, item.dtype, item.shape, None, place)
        searched = best and item.codec.startswith("int")
        if searched:
            check_best(find_codec(item.codec), tensor=item.source)
        planned.append(
            PlannedTensor(
                item.name,
                item.source,
                item.codec,
                item.shape,
                offset,
                nbytes,
                item.literal,
                importance.get(item.source or "") if searched else None,
                searched,
                item.plane,
                item.rows,
                _count(item),
            )
        )
    return tensors, tuple(planned), end


def _notes(settings: Settings) -> tuple[str, ...]:
    if not settings.classic:
        return ()
    return (
        "8-bit activations lose more than 8-bit weights alone (onnx:int8), and processors without "
        "VNNI may lose more yet",
    )


def _told(target: Target) -> Target:
    """The target as files tell it: of somebody's paths, names alone."""
    options = tuple(
        (key, Path(str(value)).name if key == "text" else value) for key, value in target.options
    )
    return replace(target, options=options)


def _config_text(config: Mapping[str, object]) -> str:
    """The source's config without private keys, one of which may hold somebody's path."""
    told = {key: value for key, value in config.items() if not key.startswith("_")}
    return json.dumps(told, sort_keys=True)


def _count(item: Stored) -> int:
    """How many of the model's weights a constant holds."""
    return item.weights if item.source is not None and item.plane == 0 else 0


def _tokenizer(checkpoint: Checkpoint) -> dict[str, bytes]:
    found = copied_files(checkpoint.folder)
    if "tokenizer.json" not in found:
        raise UnsupportedError(
            "has no tokenizer.json, which ONNX Runtime GenAI needs",
            file=checkpoint.folder,
            remedy="Load and save the tokenizer with transformers once; that writes it.",
        )
    return {name: text for name, text in found.items() if name not in _UNUSED}


def _hint(path: Path) -> str:
    return f"phiquant bench {shlex.quote(str(path))}"


def _check(path: Path, file: PlannedFile) -> None:
    """Reopen the staged file; the graph's reader holds every tensor's place against the data."""
    if path.stat().st_size != file.size:
        raise InternalError("the written file is not as planned")
    if path.suffix == ".json":
        read_json(path)
    if path.name == MODEL:
        onnx_format.read(path)
