"""A GGUF in Ollama's store: blobs under their digests, and a manifest that leads to them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_process import phiquant

import phiquant as pq
from phiquant.errors import ChangedError, UnsupportedError, UsageError
from phiquant.registry import ollama
from places import DATA

LICENCE = "MIT License\n\nPermission is hereby granted ...\n"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PHIQUANT_REGISTRY", str(tmp_path / "models.sqlite"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    return tmp_path / "ollama"


@pytest.fixture
def gguf(store: Path, tmp_path: Path) -> Path:
    """A GGUF with its Modelfile, of a source with a licence."""
    source = tmp_path / "tiny"
    shutil.copytree(DATA / "phi4mini", source, ignore=shutil.ignore_patterns("reference*"))
    (source / "LICENSE").write_text(LICENCE)
    return pq.convert(source, "q4_k_m", tmp_path / "Tiny-Q4.gguf", companions=True).path


def read(store: Path, name: str, tag: str = "latest", namespace: str = "library") -> dict[str, Any]:
    """What the manifest leads to, as a server reads it: content by kind. All digests must hold."""
    path = store / "manifests" / "registry.ollama.ai" / namespace / name / tag
    listing = json.loads(path.read_text())
    assert listing["schemaVersion"] == 2
    assert listing["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    found = {}
    for layer in (listing["config"], *listing["layers"]):
        assert set(layer) == {"mediaType", "digest", "size"}
        content = (store / "blobs" / layer["digest"].replace(":", "-")).read_bytes()
        assert len(content) == layer["size"]
        assert layer["digest"] == "sha256:" + hashlib.sha256(content).hexdigest()
        found[layer["mediaType"]] = content
    return found


def test_a_model_is_stored_as_its_modelfile_says(store: Path, gguf: Path) -> None:
    done = phiquant("models", "ollama", "Tiny-Q4")
    assert done.returncode == 0, done.stderr
    assert "ollama run tiny-q4:latest" in done.stderr
    found = read(store, "tiny-q4")
    assert list(found) == [
        "application/vnd.docker.container.image.v1+json",
        "application/vnd.ollama.image.model",
        "application/vnd.ollama.image.template",
        "application/vnd.ollama.image.license",
        "application/vnd.ollama.image.params",
    ]
    kind = "application/vnd.ollama.image."
    assert found[kind + "model"] == gguf.read_bytes()
    # What `ollama create` would read from the Modelfile.
    modelfile = (gguf.parent / "Modelfile").read_text()
    (template,) = re.findall(r'^TEMPLATE """(.*?)"""$', modelfile, re.M | re.S)
    (licence,) = re.findall(r'^LICENSE """(.*?)"""$', modelfile, re.M | re.S)
    stops = re.findall(r'^PARAMETER stop "(.*)"$', modelfile, re.M)
    assert found[kind + "template"].decode() == template
    assert found[kind + "license"].decode() == licence == LICENCE.strip()
    assert json.loads(found[kind + "params"]) == {"stop": stops} and len(stops) >= 3
    config = json.loads(found["application/vnd.docker.container.image.v1+json"])
    weights = sum(tensor.size for tensor in map(_array, pq.open(gguf).entries.values()))
    assert config == {
        "model_format": "gguf",
        "model_family": "phi3",
        "model_families": ["phi3"],
        "model_type": f"{weights / 1e6:.2f}M",
        "file_type": "Q4_K_M",
        "architecture": "amd64",
        "os": "linux",
    }


def _array(entry: Any) -> Any:
    import numpy as np

    return np.empty(entry.shape, np.int8)


def test_a_second_time_changes_nothing_and_takes_no_more_disk(store: Path, gguf: Path) -> None:
    first = ollama.put(gguf, "tiny")
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    again = ollama.put(gguf, "tiny:latest")
    assert (again.manifest, again.blob, again.how) == (first.manifest, first.blob, "there already")
    assert {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()} == before
    assert first.how in ("linked", "cloned")
    assert (first.how == "linked") == first.blob.samefile(gguf)
    ollama.put(gguf, "acme/tiny:q4")
    assert read(store, "tiny", "q4", "acme").keys() == read(store, "tiny").keys()


def test_another_model_keeps_its_name(store: Path, gguf: Path, tmp_path: Path) -> None:
    other = pq.convert(DATA / "phi35", "q8_0", tmp_path / "other.gguf").path
    ollama.put(gguf, "tiny")
    done = phiquant("models", "ollama", "other", "--as", "tiny")
    assert done.returncode == 2 and "another model named tiny:latest" in done.stderr
    kind = "application/vnd.ollama.image.model"
    assert read(store, "tiny")[kind] == gguf.read_bytes()
    assert phiquant("models", "ollama", "other", "--as", "tiny", "--overwrite").returncode == 0
    assert read(store, "tiny")[kind] == other.read_bytes()


def test_a_file_that_changed_is_refused_unless_it_is_wanted(store: Path, gguf: Path) -> None:
    with gguf.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    done = phiquant("models", "ollama", gguf)
    assert done.returncode == 4 and "changed since it was made" in done.stderr
    assert not store.exists()
    assert phiquant("models", "ollama", gguf, "--force").returncode == 0
    with pytest.raises(ChangedError):
        ollama.put(gguf, "other", crc32c="00000000")


@pytest.mark.parametrize("name", ["", "-x", "a/b/c", "a:b:c", "a b", "../x", "é", "a" * 81, "x:"])
def test_names_that_ollama_would_not_find_are_refused(name: str, store: Path, gguf: Path) -> None:
    with pytest.raises(UsageError, match="no name for Ollama"):
        ollama.put(gguf, name)
    assert not store.exists()


def test_parts_and_folders_are_refused(store: Path, tmp_path: Path) -> None:
    report = pq.convert(DATA / "phi35", "q8_0", tmp_path / "x.gguf", split_size="2M")
    with pytest.raises(UnsupportedError, match="several split files"):
        ollama.put(report.path, "x")
    pq.convert(DATA / "phi35", "mlx:4bit", tmp_path / "folder")
    done = phiquant("models", "ollama", "folder")
    assert done.returncode == 3 and "GGUF" in done.stderr


def test_a_store_that_cannot_be_written_is_an_error(
    store: Path, gguf: Path, tmp_path: Path
) -> None:
    store.write_bytes(b"a file")
    done = phiquant("models", "ollama", gguf)
    assert done.returncode == 4 and "OLLAMA_MODELS" in done.stderr
