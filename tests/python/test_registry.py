"""The registry: what is recorded of a run, what has changed since, and what its file survives."""

from __future__ import annotations

import html.parser
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_process import phiquant

import phiquant as pq
from phiquant.errors import FormatError, IoError, UnsupportedError, UsageError
from phiquant.registry.changes import changes
from phiquant.registry.records import File, NewModel
from phiquant.registry.store import Registry, place
from places import DATA

TARGETS = [
    "q4_k_m", "onnx:int4", "onnx:int8-dynamic", "openvino:int4", "mlx:4bit", "hf:w4a16", "hf:gptq",
]  # fmt: skip


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """An empty registry, which runs in this test and its children write to."""
    file = tmp_path / "registry" / "models.sqlite"
    monkeypatch.setenv("PHIQUANT_REGISTRY", str(file))
    return Registry()


def new_model(path: Path, made: float = 1.0) -> NewModel:
    return NewModel(path, False, "gguf:q8_0", made, {}, (File(path.name, 3, 0, "00000000", None),))


def castagnoli(content: bytes) -> int:
    """CRC-32C bit by bit, as RFC 3720 has it: an oracle that is not phiquant's."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    crc = 0xFFFFFFFF
    for byte in content:
        crc = (crc >> 8) ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def test_the_oracle_knows_the_check_value() -> None:
    assert castagnoli(b"123456789") == 0xE3069283


def test_each_file_of_each_format_is_recorded_with_the_checksum_of_its_bytes(
    registry: Registry, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    report = pq.convert(DATA / "phi35", TARGETS, out, sha256=True)
    models = {model.target: model for model in registry.models()}
    assert [result.resolve() for result in report.results] == [
        m.path for m in reversed(registry.models())
    ]
    assert len(models) == len(TARGETS)
    # Whole checksums come from those of parts; the oracle, a byte at a time, looks at the small files.
    for model in models.values():
        assert changes(model) == []
        on_disk = {p.name for p in out.rglob("*") if p.is_file() and p.is_relative_to(model.path)}
        assert {file.name for file in model.files} == on_disk
        for file in model.files:
            content = (model.home / file.name).read_bytes()
            assert file.nbytes == len(content)
            if len(content) < 1 << 20:
                assert file.crc32c == f"{castagnoli(content):08x}"
    written = {Path(file.path).resolve(): file.sha256 for file in report.files}
    assert written == {m.home / f.name: f.sha256 for m in models.values() for f in m.files}
    gguf = models["gguf:q4_k_m"]
    assert gguf.files[0].crc32c == f"{castagnoli(gguf.path.read_bytes()):08x}"
    assert gguf.facts["source"]["path"] == str(DATA / "phi35")
    assert gguf.facts["codecs"]["q4_k"]["tensors"] == 21
    assert gguf.facts["phiquant"] == pq.__version__
    assert not gguf.replaced


def test_a_record_tells_recipe_importance_and_split_files(
    registry: Registry, tmp_path: Path
) -> None:
    pq.convert(
        DATA / "phi35", "q4_k_m", tmp_path / "x.gguf", quality="best", tensor="*.down_proj.weight=q6_k",
        importance=DATA / "phi35" / "imatrix.gguf", split_size="1M", companions=True,
    )  # fmt: skip
    (model,) = registry.models()
    assert model.facts["recipe"]["quality"] == "best"
    assert model.facts["recipe"]["tensor"] == ["*.down_proj.weight=q6_k"]
    assert len(model.facts["recipe"]["importance"]["sha256"]) == 64
    assert len(model.files) > 3
    assert model.path.name == model.files[0].name == f"x-00001-of-{len(model.files):05}.gguf"
    assert model.facts["companions"] == [str(tmp_path / "Modelfile")]
    assert changes(model) == []
    assert registry.at(tmp_path / model.files[2].name) == model


def test_the_commit_of_a_hub_checkpoint_is_recorded(registry: Registry, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "models--acme--tiny-phi" / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(DATA / "phi4mini")
    pq.convert(snapshot, "q8_0", tmp_path / "x.gguf")
    (model,) = registry.models()
    assert model.facts["source"]["repository"] == "acme/tiny-phi"
    assert model.facts["source"]["revision"] == commit


def test_tensors_in_memory_are_recorded_as_such(registry: Registry, tmp_path: Path) -> None:
    source = pq.open(DATA / "phi4mini")
    tensors = {name: source[name] for name in source}
    pq.convert(
        tensors, "q8_0", tmp_path / "x.gguf", config=DATA / "phi4mini", tokenizer=DATA / "phi4mini"
    )
    (model,) = registry.models()
    assert model.facts["source"]["path"] == "dict (in memory)"
    assert model.source_folder is None and changes(model) == []


def test_a_result_that_takes_anothers_path_replaces_its_record(
    registry: Registry, tmp_path: Path
) -> None:
    first, second = (
        registry.add([new_model(tmp_path / "a.gguf")]),
        registry.add([new_model(tmp_path / "a.gguf")]),
    )
    assert [model.id for model in registry.models()] == second
    assert [model.id for model in registry.models(replaced=True)] == [*second, *first]
    assert registry.find("a").id == second[0]
    assert registry.find(str(first[0])).replaced


def test_names_are_found_or_explained(registry: Registry, tmp_path: Path) -> None:
    registry.add([new_model(tmp_path / "one" / "a.gguf"), new_model(tmp_path / "two" / "a.gguf")])
    with pytest.raises(UsageError, match=r"several results named 'a\.gguf'"):
        registry.find("a.gguf")
    assert registry.find(str(tmp_path / "two" / "a.gguf")).path.parent.name == "two"
    with pytest.raises(UsageError, match=r"Did you mean a\.gguf"):
        registry.find("b.gguf")


def test_verify_finds_what_is_missing_longer_or_has_other_bytes(
    registry: Registry, tmp_path: Path
) -> None:
    for name in ("a", "b", "c", "sound"):
        pq.convert(DATA / "phi4mini", "q8_0", tmp_path / f"{name}.gguf")
    (tmp_path / "a.gguf").unlink()
    with (tmp_path / "b.gguf").open("ab") as file:
        file.write(b"x")
    with (tmp_path / "c.gguf").open("r+b") as file:
        file.seek(1 << 20)
        byte = file.read(1)
        file.seek(1 << 20)
        file.write(bytes([byte[0] ^ 1]))
    done = phiquant("models", "verify", "--json")
    assert done.returncode == 5
    found = {Path(c["path"]).name: c["what"] for c in json.loads(done.stdout)["changes"]}
    assert found == {"a.gguf": "missing", "b.gguf": "size", "c.gguf": "checksum"}
    assert "c.gguf: its checksum was crc32c " in done.stderr
    assert phiquant("models", "verify", "sound").returncode == 0


def test_a_verdict_is_of_the_bytes_that_it_saw(registry: Registry, tmp_path: Path) -> None:
    pq.convert(DATA / "phi4mini", "q8_0", tmp_path / "x.gguf")
    command = (
        "eval",
        tmp_path / "x.gguf",
        "--against",
        DATA / "phi4mini",
        "--tokens",
        "64",
        "--context",
        "64",
        "--repetition",
        "0",
        "--no-cache",
    )
    assert phiquant(*command).returncode == 0
    os.utime(tmp_path / "x.gguf", (1, 1))
    assert registry.judge(tmp_path / "x.gguf", "verify", {"runtime": "none", "checks": []}) == 1
    (model,) = registry.models()
    seen, changed = model.verdicts
    assert (seen.kind, seen.checksum) == ("eval", model.checksum)
    assert seen.facts["mean_kld"] >= 0 and seen.facts["run"]["scored"] > 0
    assert (changed.kind, changed.checksum) == ("verify", None)
    assert registry.judge(tmp_path / "unknown.gguf", "verify", {}) is None
    shown = phiquant("models", "show", "x").stdout
    assert "mean KLD 0.0" in shown and "of other bytes" in shown


class Page(html.parser.HTMLParser):
    """Texts, tags and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_audit_report_escapes_names_and_needs_no_other_file(
    registry: Registry, tmp_path: Path
) -> None:
    name = "<script>alert('1')&amp;.gguf"
    pq.convert(DATA / "phi4mini", "q8_0", tmp_path / name)
    page, facts = tmp_path / "audit.html", tmp_path / "audit.json"
    assert phiquant("models", "--export", page).returncode == 0
    assert phiquant("models", "--export", facts).returncode == 0
    shown = Page(page.read_text())
    assert "script" not in shown.tags and "link" not in shown.tags and not shown.addresses
    assert any(name in text for text in shown.texts)
    (model,) = json.loads(facts.read_text())["models"]
    assert model["name"] == name and model["files"][0]["crc32c"] in page.read_text()
    again = phiquant("models", "--export", page)
    assert again.returncode == 2 and "exists already" in again.stderr
    assert phiquant("models", "--export", page, "--overwrite").returncode == 0
    assert phiquant("models", "--export", tmp_path / "x.pdf").returncode == 2
    assert {p.name for p in tmp_path.iterdir()} == {name, page.name, facts.name, "registry"}


def test_what_is_forgotten_is_gone_and_its_files_are_not(
    registry: Registry, tmp_path: Path
) -> None:
    pq.convert(DATA / "phi4mini", "q8_0", tmp_path / "x.gguf")
    done = phiquant("models", "forget", "x")
    assert (done.returncode, done.stdout) == (0, "")
    assert registry.models(replaced=True) == []
    with sqlite3.connect(str(registry.path)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM files").fetchone() == (0,)
    connection.close()
    assert (tmp_path / "x.gguf").exists()


def test_what_is_gone_is_shown_as_such_and_can_be_forgotten(
    registry: Registry, tmp_path: Path
) -> None:
    for name in ("gone", "there"):
        pq.convert(DATA / "phi4mini", "q8_0", tmp_path / f"{name}.gguf")
    (tmp_path / "gone.gguf").unlink()
    done = phiquant("models")
    sizes = {line.split()[1]: line.split()[3] for line in done.stdout.splitlines()[2:]}
    assert sizes == {"gone.gguf": "gone", "there.gguf": "5.29"}
    assert "gone from the disk: 1;" in done.stderr
    listed = json.loads(phiquant("models", "--json").stdout)["models"]
    assert {one["name"]: one["there"] for one in listed} == {"gone.gguf": False, "there.gguf": True}
    assert phiquant("models", "forget").returncode == 2
    assert phiquant("models", "forget", "--gone").returncode == 0
    assert [model.name for model in registry.models(replaced=True)] == ["there.gguf"]


WRITER = """
import sys
from pathlib import Path
from phiquant.registry.records import NewModel
from phiquant.registry.store import Registry
for n in range(30):
    Registry().add([NewModel(Path(f"/{sys.argv[1]}/{n}"), False, "t", 0.0, {}, ())])
"""


def test_two_writers_at_once_lose_nothing(registry: Registry) -> None:
    command = [sys.executable, "-c", WRITER]
    writers = [subprocess.Popen([*command, name]) for name in ("a", "b")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    paths = {str(model.path) for model in registry.models()}
    assert paths == {f"/{name}/{n}" for name in "ab" for n in range(30)}


@pytest.fixture
def file(registry: Registry) -> Path:
    """A registry's file with a few records, so that it has several pages."""
    registry.add([new_model(Path(f"/models/{n}.gguf")) for n in range(200)])
    assert registry.path is not None
    return registry.path


def test_a_file_that_is_no_database_is_refused_with_a_remedy(file: Path) -> None:
    file.write_bytes(b"no database at all, " * 100)
    with pytest.raises(FormatError, match=r"models\.sqlite: .*damaged.*Move it away"):
        Registry().models()
    assert phiquant("models").returncode == 3


@pytest.mark.parametrize("size", [50, 100, 4096, 8192, -4096, -1])
def test_a_truncated_file_is_refused(file: Path, size: int) -> None:
    os.truncate(file, size if size > 0 else file.stat().st_size + size)
    for use in (Registry().models, lambda: Registry().add([new_model(Path("/x"))])):
        with pytest.raises(FormatError, match="Move it away"):
            use()


def test_a_newer_registry_and_another_programs_database_are_left_alone(file: Path) -> None:
    for statement, error, words in (
        ("PRAGMA user_version = 2", UnsupportedError, "newer phiquant"),
        ("PRAGMA application_id = 7", FormatError, "another program"),
    ):
        connection = sqlite3.connect(file)
        connection.execute(statement)
        connection.close()
        before = file.read_bytes()
        for use in (Registry().models, lambda: Registry().add([new_model(Path("/x"))])):
            with pytest.raises(error, match=words):
                use()
        assert file.read_bytes() == before


def test_an_empty_file_is_an_empty_registry(registry: Registry) -> None:
    assert registry.path is not None
    registry.path.parent.mkdir()
    registry.path.touch()
    assert registry.models() == []
    assert registry.add([new_model(Path("/x"))]) == [1]


def test_a_registry_that_another_process_holds_is_an_error_in_time(file: Path) -> None:
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    begin = time.monotonic()
    with pytest.raises(IoError, match="Another process holds it"):
        Registry(patience=0.05).add([new_model(Path("/x"))])
    assert time.monotonic() - begin < 5
    holder.execute("ROLLBACK")
    holder.close()
    assert len(Registry().models()) == 200


@pytest.mark.parametrize("hindrance", ["damaged", "folder", "below a file"])
def test_a_run_that_cannot_be_recorded_says_so_and_succeeds(
    hindrance: str, registry: Registry, tmp_path: Path
) -> None:
    blocked = tmp_path / "blocked"
    if hindrance == "folder":
        blocked.mkdir()
    else:
        blocked.write_bytes(b"x" * 3000)
    path = blocked / "models.sqlite" if hindrance == "below a file" else blocked
    done = phiquant(
        "convert", DATA / "phi4mini", "--to", "q8_0", "-o", tmp_path / "x.gguf",
        PHIQUANT_REGISTRY=str(path),
    )  # fmt: skip
    assert done.returncode == 0
    assert "phiquant: this run was not recorded: " in done.stderr and str(blocked) in done.stderr
    assert done.stdout == f"{tmp_path / 'x.gguf'}\n"


def test_where_the_registry_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PHIQUANT_REGISTRY", "off")
    assert (
        place() is None
        and Registry().models() == []
        and Registry().add([new_model(Path("/x"))]) == []
    )
    monkeypatch.setenv("PHIQUANT_REGISTRY", "own.sqlite")
    assert place() == Path("own.sqlite").absolute()
    if sys.platform == "linux":
        monkeypatch.delenv("PHIQUANT_REGISTRY")
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        assert place() == tmp_path / "phiquant" / "models.sqlite"
        monkeypatch.setenv("XDG_DATA_HOME", "not/absolute")
        assert place() == Path.home() / ".local" / "share" / "phiquant" / "models.sqlite"


def test_importing_phiquant_opens_no_database() -> None:
    code = "import sys, phiquant; print('sqlite3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
