"""Fuzz the readers that are Python, guided by what runs: atheris, CPython 3.11 to 3.13 on Linux.

    python tests/fuzz/fuzz_python.py TARGET [SECONDS=60]     search; without TARGET the names
    python tests/fuzz/fuzz_python.py TARGET FILE             read one input, as a crash left it

Needs phiquant, its tests' NumPy and ml_dtypes, and ``pip install atheris``. Only phiquant's errors
may escape. New inputs and crashes stay in a temporary folder that is named at the start; seeds are
cut out of tests/data, or made by phiquant out of tests/tiny_model.py's model; what found something
stands in corpus/TARGET.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "corrupt")]

ROWS = 512
HUGE: list[Any] = [10**400, -(10**400), 1 << 1023]


@dataclass
class Target:
    """A file that is replaced, what it is replaced by at first, and what reads it."""

    path: Path
    seeds: list[bytes]
    read: Callable[[], object]


def _dumped(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _small_tokenizer(fixture: str) -> tuple[dict[str, Any], dict[str, Any], set[str]]:
    """tokenizer.json and tokenizer_config.json with some hundred tokens, and their texts."""
    folder = TESTS / "data" / fixture
    whole = json.loads((folder / "tokenizer.json").read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    model = whole["model"]
    parts = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    results = ["".join(pair) for pair in parts if len("".join(pair)) == 2][:40]
    kept = {*"".join(results), *results}
    kept |= {text for text in model["vocab"] if text.startswith(("<", "|"))}
    if not model.get("byte_fallback"):
        kept |= {text for text in model["vocab"] if len(text) == 1}
    texts = [text for text in sorted(model["vocab"], key=model["vocab"].get) if text in kept]
    ids = {text: index for index, text in enumerate(texts)}
    for token in whole["added_tokens"]:
        token["id"] = ids.setdefault(token["content"], len(ids))
    model["vocab"] = {text: ids[text] for text in texts}
    model["merges"] = [
        merge
        for merge, pair in zip(model["merges"], parts, strict=True)
        if {*pair, "".join(pair)} <= set(texts)
    ]
    decoder = config.get("added_tokens_decoder", {}).values()
    config["added_tokens_decoder"] = {str(ids[t["content"]]): t for t in decoder}
    return whole, config, set(texts)


def _small_sentencepiece(texts: set[str]) -> bytes:
    """tokenizer.model of the same tokens."""
    from phiquant.tokenizer import wire

    path = TESTS / "data" / "phi35" / "tokenizer.model"
    out = bytearray()
    for number, kind, value in wire.fields(memoryview(path.read_bytes()), path):
        if kind != wire.BYTES or not isinstance(value, memoryview) or len(value) > 16383:
            continue
        text = (
            next((v for n, _, v in wire.fields(value, path) if n == 1), b"") if number == 1 else b""
        )
        if number == 1 and bytes(text).decode() not in texts:  # type: ignore[arg-type]
            continue
        size = len(value)
        low = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
        out += bytes([number << 3 | kind]) + low + bytes(value)
    return bytes(out)


def _tokenizer(folder: Path, fixture: str, name: str) -> Target:
    from phiquant.targets.openvino_tokenizer import detokenizer_graph, tokenizer_graph
    from phiquant.tokenizer import general_name, gguf_metadata, load, needs_phi3_name

    tokenizer, config, texts = _small_tokenizer(fixture)
    files = {"tokenizer.json": _dumped(tokenizer), "tokenizer_config.json": _dumped(config)}
    if name == "tokenizer.model":
        files = {name: _small_sentencepiece(texts), "tokenizer_config.json": _dumped(config)}
    for other, data in files.items():
        (folder / other).write_bytes(data)

    def read() -> None:
        found = load(folder, vocab_size=ROWS)
        gguf_metadata(found)
        general_name(found, "phi-3")
        needs_phi3_name(found)
        tokenizer_graph(found, folder, max_length=100)
        detokenizer_graph(found)

    return Target(folder / name, [files[name]], read)


def _config(folder: Path) -> Target:
    from phiquant.architectures import read_config, spec_from_config

    path = folder / "config.json"
    found = [*TESTS.glob("data/configs/*.json"), *TESTS.glob("data/phi*/config*.json")]
    return Target(
        path, [p.read_bytes() for p in sorted(found)], lambda: spec_from_config(read_config(path))
    )


def _generation(folder: Path) -> Target:
    """generation_config.json, as far as GGUF's metadata and genai_config.json repeat it."""
    from phiquant.architectures import spec_from_config
    from phiquant.targets.gguf_metadata import general, read_source_facts
    from phiquant.targets.onnx_config import genai_config
    from tiny_model import config_of

    config = config_of()
    spec = spec_from_config(config)
    seeds = [p.read_bytes() for p in sorted(TESTS.glob("data/phi*/generation_config.json"))]
    seeds.append(_dumped({"top_k": 5, "top_p": 0.5, "temperature": 2, "do_sample": True,
                          "repetition_penalty": 1.1, "sequence": "top_k", "min_p": 0.1}))  # fmt: skip

    def read() -> None:
        facts = read_source_facts(folder, config, name="x")
        general(spec, facts)
        genai_config(spec, config, facts.generation, provider="cpu", filename="x", positions=False)

    return Target(folder / "generation_config.json", seeds, read)


def _index(folder: Path) -> Target:
    from phiquant import safetensors
    from tiny_model import INDEX, config_of, weights_of, write_model

    write_model(folder, weights_of(config_of()), shards=3)
    path = folder / INDEX
    return Target(path, [path.read_bytes()], lambda: list(safetensors.open_folder(folder)))


def _result(folder: Path, to: str, name: str) -> Target:
    """A file of what phiquant makes; the smallest weights are decoded, too."""
    import phiquant as pq
    from phiquant.description import describe
    from tiny_model import config_of, weights_of, write_model

    config = config_of(vocab_size=4096)
    model = write_model(folder / "model", weights_of(config))
    place = pq.convert(model, to, folder / "result").path
    path = Path(place) / name
    if name == "quantize_config.json":
        # As tools wrote it before config.json held it.
        whole = json.loads((path.parent / "config.json").read_bytes())
        settings = whole.pop("quantization_config")
        (path.parent / "config.json").write_bytes(_dumped(whole))
        del settings["quant_method"]
        path.write_bytes(_dumped(settings))

    def read() -> None:
        checkpoint = pq.open(place)
        for entry in sorted(checkpoint, key=lambda name: checkpoint.entries[name].nbytes)[:2]:
            tensor: Any = checkpoint[entry]
            if isinstance(tensor, pq.QuantizedTensor):
                tensor.dequantize()
        describe(checkpoint)

    return Target(path, [path.read_bytes()], read)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "config": _config,
    "generation_config": _generation,
    "tokenizer_json": lambda folder: _tokenizer(folder, "phi35", "tokenizer.json"),
    "tokenizer_json_bytes": lambda folder: _tokenizer(folder, "phi4mini", "tokenizer.json"),
    "tokenizer_model": lambda folder: _tokenizer(folder, "phi35", "tokenizer.model"),
    "tokenizer_config": lambda folder: _tokenizer(folder, "phi4mini", "tokenizer_config.json"),
    "index": _index,
    "genai_config": lambda folder: _result(folder, "onnx:int4", "genai_config.json"),
    "openvino_xml": lambda folder: _result(folder, "openvino:int4_asym", "openvino_model.xml"),
    "gptq_config": lambda folder: _result(folder, "hf:gptq", "quantize_config.json"),
    "hf_config": lambda folder: _result(folder, "hf:w4a16", "config.json"),
    "mlx_config": lambda folder: _result(folder, "mlx:4bit", "config.json"),
}


def _change_xml(chance: random.Random, data: bytes) -> bytes:
    """One to three attributes or texts that say what others do, or nonsense; or other bytes."""
    import mutations

    found = list(re.finditer(rb'(?<==")[^"]*(?=")|(?<=>)[^<>]+(?=<)', data))
    if not found or chance.randrange(4) == 0:
        return mutations.change_bytes(chance, data)
    spans = chance.sample(found, min(len(found), chance.randint(1, 3)))
    for span in sorted(spans, key=lambda match: -match.start()):
        odd = [
            b"",
            b"-1",
            b"0",
            b"1",
            b"x",
            b"1,0",
            b"9" * 30,
            b"9" * 5000,
            b"1e9",
            b" 1",
            "\u00b2".encode(),
        ]
        new = chance.choice([chance.choice(found)[0], chance.choice(odd)])
        data = data[: span.start()] + new + data[span.end() :]
    return data


def _try(target: Target, data: bytes) -> None:
    """Read an input: sound, or refused by an error that blames the file, fit for a terminal."""
    from phiquant.errors import PhiquantError

    target.path.write_bytes(data)
    try:
        target.read()
    except PhiquantError as error:
        words = str(error)
        if error.exit_code not in (3, 4) or not words.isprintable() or len(words) > 20_000:
            raise AssertionError(f"an unfit refusal: {error!r}") from error


def _search(name: str, seconds: int, build: Path) -> None:
    import atheris
    import mutations

    # Only what was imported in here is watched.
    with atheris.instrument_imports(include=["phiquant"], enable_loader_override=False):
        scratch = Path(tempfile.mkdtemp(dir=build))
        target = TARGETS[name](scratch)
    found = sorted((TESTS / "fuzz" / "corpus" / name).glob("*"))
    target.seeds += [path.read_bytes() for path in found]
    corpus = build / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    most = max(4096, 2 * max(map(len, target.seeds)))
    kinds = {".json": mutations.change_json, ".xml": _change_xml}
    change = kinds.get(target.path.suffix, mutations.change_bytes)
    mutations.NASTY += HUGE

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        """Three times of four what the JSON or XML says, or a format's words; else any bytes."""
        chance = random.Random(seed)
        if data and chance.randrange(4):
            try:
                changed = change(chance, data)
            except (ValueError, RecursionError):  # the bytes before were no JSON
                changed = mutations.change_bytes(chance, data)
            if len(changed) <= max_size:
                return changed
        return bytes(atheris.Mutate(data, max_size))

    options = [
        f"-max_total_time={seconds}", f"-max_len={most}", "-timeout=10", "-rss_limit_mb=4096",
        f"-artifact_prefix={build}/", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup(
        [sys.argv[0], *options, str(corpus)],
        lambda data: _try(target, data),
        custom_mutator=mutate,
    )
    atheris.Fuzz()


def main(arguments: list[str]) -> None:
    """The command line of this file's docstring."""
    if not arguments or arguments[0] not in TARGETS:
        sys.exit("usage: fuzz_python.py TARGET [SECONDS | FILE]\ntargets: " + " ".join(TARGETS))
    name, last = arguments[0], (arguments[1:] or ["60"])[0]
    if not last.isdigit():
        with tempfile.TemporaryDirectory() as scratch:
            _try(TARGETS[name](Path(scratch)), Path(last).read_bytes())
        return
    build = Path(os.environ.get("TMPDIR", "/tmp")) / "phiquant-fuzz" / f"python-{name}"
    build.mkdir(parents=True, exist_ok=True)
    for old in build.glob("tmp*"):
        shutil.rmtree(old)
    print(f"searching {name} for {last} seconds; what is found stays in {build}")
    _search(name, int(last), build)


if __name__ == "__main__":
    main(sys.argv[1:])
