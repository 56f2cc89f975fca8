"""Results on a hub: what is published, with which card, and what is refused before a byte is sent."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_process import phiquant
from loopback_hub import LoopbackHub

import phiquant as pq
from phiquant.registry.store import Registry
from phiquant.targets.model_card import read_card
from places import DATA

TOKEN = "hf_secretsecretsecretsecretsecret"
LICENCE = "MIT License\n\nPermission is hereby granted ...\n"
Push = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        server.writers[TOKEN] = "acme"
        yield server


@pytest.fixture
def push(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Push:
    """Runs ``phiquant push`` as a user of that hub."""
    monkeypatch.setenv("PHIQUANT_REGISTRY", str(tmp_path / "models.sqlite"))

    def run(*args: object, **changes: str) -> subprocess.CompletedProcess[str]:
        settings = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",  # the other protocol, which this hub does not speak
            "HF_TOKEN": TOKEN,
            "NO_PROXY": "127.0.0.1",
        }
        done = phiquant("push", *args, **settings | changes)
        assert TOKEN not in done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint as the hub's cache has it, with licence and card."""
    folder = tmp_path / "models--acme--tiny" / "snapshots" / ("0123456789" * 4)
    shutil.copytree(DATA / "phi4mini", folder, ignore=shutil.ignore_patterns("reference*"))
    (folder / "LICENSE").write_text(LICENCE)
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: [en]\n---\n# Tiny\n")
    return folder


def published(hub: LoopbackHub, repository: str, branch: str = "main") -> dict[str, bytes]:
    found = hub.repositories[repository]
    return found.commits[found.names[branch]]


def card(files: dict[str, bytes], folder: Path) -> tuple[str, dict[str, object]]:
    """The card's text, and its front matter."""
    folder.mkdir()
    (folder / "README.md").write_bytes(files["README.md"])
    return files["README.md"].decode(), dict(read_card(folder))


def test_a_gguf_is_published_with_a_card_that_says_where_it_comes_from(
    push: Push, hub: LoopbackHub, source: Path, tmp_path: Path
) -> None:
    out = pq.convert(source, "q4_k_m", tmp_path / "tiny-q4_k_m.gguf").path
    done = push(out, "acme/tiny-GGUF", "--private")
    assert done.returncode == 0, done.stderr
    files = published(hub, "acme/tiny-GGUF")
    assert set(files) == {"tiny-q4_k_m.gguf", "README.md", "LICENSE"}
    assert files["tiny-q4_k_m.gguf"] == out.read_bytes()
    assert files["LICENSE"].decode() == LICENCE
    assert hub.repositories["acme/tiny-GGUF"].private
    commit = hub.repositories["acme/tiny-GGUF"].names["main"]
    assert done.stdout == f"{hub.endpoint}/acme/tiny-GGUF/commit/{commit}\n"
    text, front = card(files, tmp_path / "card")
    assert front == {
        "pipeline_tag": "text-generation",
        "base_model": "acme/tiny",
        "base_model_relation": "quantized",
        "license": "mit",
        "tags": ["gguf", "phiquant"],
        "quantized_by": "phiquant",
    }
    (model,) = Registry().models()
    assert source.name in text and model.files[0].crc32c in text
    assert "phiquant convert --to gguf:q4_k_m" in text
    assert [one.kind for one in model.verdicts] == ["push"]
    assert model.verdicts[0].facts["commit"] == commit


def test_the_card_is_yaml_to_the_hubs_own_library(
    push: Push, hub: LoopbackHub, source: Path, tmp_path: Path
) -> None:
    from huggingface_hub import ModelCard

    name = 'a "b": #c | d.gguf'
    pq.convert(source, "q8_0", tmp_path / name, tensor="*.down_proj.weight=q6_k")
    assert push(tmp_path / name, "acme/odd").returncode == 0
    found = ModelCard(published(hub, "acme/odd")["README.md"].decode())
    assert found.data.license == "mit" and found.data.base_model == "acme/tiny"
    assert '# a "b": #c | d' in found.text and "--tensor '*.down_proj.weight=q6_k'" in found.text


def test_a_second_result_joins_the_first_and_keeps_its_card(
    push: Push, hub: LoopbackHub, source: Path, tmp_path: Path
) -> None:
    for preset in ("q4_k_m", "q8_0"):
        pq.convert(source, preset, tmp_path / f"{preset}.gguf")
        assert push(preset, "acme/tiny").returncode == 0
    files = published(hub, "acme/tiny")
    assert set(files) == {"q4_k_m.gguf", "q8_0.gguf", "README.md", "LICENSE"}
    assert b"q4_k_m" in files["README.md"] and b"q8_0" not in files["README.md"]
    # What the hub has is not sent again.
    hub.requests.clear()
    assert push("q8_0", "acme/tiny").returncode == 0
    assert not [path for method, path in hub.requests if method == "PUT"]


def test_a_folder_is_published_as_it_is_on_a_branch_of_its_own(
    push: Push, hub: LoopbackHub, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    report = pq.convert(source, ["hf:w4a16", "onnx:int4"], tmp_path / "out")
    for folder in report.results:
        (folder / ".secret").write_text("not for the public")
        assert push(folder, "acme/tiny", "--revision", folder.name, "--json").returncode == 0
        files = published(hub, "acme/tiny", folder.name)
        own = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".secret"}
        assert own.items() <= files.items()
        assert set(files) - set(own) <= {"README.md", "LICENSE"}
        assert b"acme/tiny" in files["README.md"] or b"license" in files["README.md"]
    assert published(hub, "acme/tiny") == {}


def test_files_that_changed_are_refused_unless_they_are_wanted(
    push: Push, hub: LoopbackHub, source: Path, tmp_path: Path
) -> None:
    out = pq.convert(source, "q8_0", tmp_path / "x.gguf").path
    with out.open("ab") as file:
        file.write(b"x")
    done = push(out, "acme/x", "--json")
    assert done.returncode == 4
    assert json.loads(done.stdout)["error"] == "ChangedError" and "--force" in done.stderr
    assert hub.requests == []
    assert push(out, "acme/x", "--force").returncode == 0
    assert published(hub, "acme/x")["x.gguf"] == out.read_bytes()


def test_what_cannot_end_well_is_refused_with_a_remedy(
    push: Push, hub: LoopbackHub, source: Path, tmp_path: Path
) -> None:
    out = pq.convert(source, "q8_0", tmp_path / "x.gguf").path
    done = push(out, "acme/x", HF_TOKEN="")
    assert done.returncode == 4 and "hf auth login" in done.stderr
    done = push(out, "acme/x", HF_HUB_OFFLINE="1")
    assert done.returncode == 4 and "HF_HUB_OFFLINE" in done.stderr
    assert push(out, "no-owner").returncode == 2
    assert push("unheard-of", "acme/x").returncode == 2
    assert hub.requests == []
    done = push(out, "acme/x", HF_TOKEN="hf_wrong")
    assert done.returncode == 4 and "does not know the token" in done.stderr
    done = push(out, "others/x")
    assert done.returncode == 4 and "may not write" in done.stderr
    assert hub.repositories == {}
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to("/etc/hostname")
    done = push(folder, "acme/x")
    assert done.returncode == 2 and "link" in done.stderr
    hub.close()
    done = push(out, "acme/x")
    assert done.returncode == 4 and "cannot be reached" in done.stderr


def test_what_was_not_recorded_is_published_with_a_plain_card(
    push: Push, hub: LoopbackHub, source: Path, tmp_path: Path
) -> None:
    out = pq.convert(source, "q8_0", tmp_path / "x.gguf").path
    Registry().forget(Registry().find("x"))
    assert push(out, "acme/x").returncode == 0
    files = published(hub, "acme/x")
    assert set(files) == {"x.gguf", "README.md"} and b"base_model" not in files["README.md"]
