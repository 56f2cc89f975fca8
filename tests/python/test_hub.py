"""Hub ids: what is fetched from where, into which cache, and what is said when that fails."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from loopback_hub import LoopbackHub, blob_of, commit_of

import child_signals
import phiquant as pq
from phiquant import hub

DATA = Path(__file__).resolve().parents[1] / "data"
ID = "acme/tiny-phi"
# What stands in the fixture's folder for the tests' own sake.
NOT_PUBLISHED = ("reference", "imatrix", "config.transformers5")


def published(fixture: str) -> dict[str, bytes]:
    """The fixture's files as a publisher would upload them."""
    return {
        path.name: path.read_bytes()
        for path in sorted((DATA / fixture).iterdir())
        if not path.name.startswith(NOT_PUBLISHED)
    }


@pytest.fixture(scope="module")
def phi4mini() -> dict[str, bytes]:
    return published("phi4mini")


@pytest.fixture(scope="module")
def phi3win() -> dict[str, bytes]:
    return published("phi3win")


@pytest.fixture
def loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A hub that this process takes for the only one, and an empty cache."""
    from huggingface_hub import constants

    with LoopbackHub() as server:
        cache = tmp_path / "hf" / "hub"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def environment(server: LoopbackHub, home: Path, **more: str) -> dict[str, str]:
    """For a process of its own: what a user would set."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    own = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    return {**kept, **own, **more}


@pytest.mark.parametrize(
    "text",
    [
        "microsoft/Phi-4-mini-instruct",
        "microsoft/Phi-3.5-mini-instruct@main",
        "a/b@refs/pr/7",
        "acme/tiny_phi@v1.0",
        f"acme/tiny-phi@{commit_of('any')}",
    ],
)
def test_an_id_is_known_by_its_form(text: str) -> None:
    assert hub.is_hub_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "phi",
        "a/b/c",
        "/a/b",
        "./a",
        "../a",
        "a/..",
        "a/",
        "~/phi",
        "models/phi.gguf",
        "models/model.safetensors",
        "a\\b/c",
        "a/b@",
        "a/b@../../etc/passwd",
        "a/b@-x",
        "a/b@x y",
        "a/b@x\0",
        "a/b@x\n",
        "a/b\n",
        "a--b/c",
        "ä/b",
        "a/" + "b" * 96,
        "https://huggingface.co/a/b",
    ],
)
def test_paths_and_nonsense_are_no_ids(text: str) -> None:
    assert not hub.is_hub_id(text)
    with pytest.raises(pq.UsageError, match="no hub id"):
        hub.fetch(text)


def test_only_what_a_conversion_reads_is_fetched(
    loopback: LoopbackHub, phi4mini: dict[str, bytes]
) -> None:
    unneeded = {
        "consolidated.safetensors": b"the same weights once more",
        "model.safetensors": b"and again",
        "original/model.safetensors": b"and again",
        "onnx/model.onnx": b"graph",
        "pytorch_model.bin": b"pickle",
        "phi-q4.gguf": b"GGUF",
        "figure.png": b"\x89PNG",
        "modeling_phi3.py": b"code",
        ".gitattributes": b"",
    }
    legal = {"LICENSE": b"MIT", "NOTICE.md": b"notice", "README.md": b"---\nlicense: mit\n---\n"}
    commit = loopback.add(ID, {**phi4mini, **legal, **unneeded})
    folder = hub.fetch(ID)
    assert folder.name == commit
    wanted = {**phi4mini, **legal}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted
    assert sorted(loopback.fetched()) == sorted(wanted)


def test_a_single_file_needs_no_index(loopback: LoopbackHub, phi3win: dict[str, bytes]) -> None:
    loopback.add(ID, {**phi3win, "consolidated.safetensors": b"once more"})
    folder = hub.fetch(ID)
    assert "consolidated.safetensors" not in loopback.fetched()
    assert len(pq.open(ID)) == len(pq.open(folder)) > 0


def test_a_second_fetch_asks_for_no_content(
    loopback: LoopbackHub, phi3win: dict[str, bytes]
) -> None:
    loopback.add(ID, phi3win)
    first = hub.fetch(ID)
    assert loopback.fetched() != []
    assert hub.fetch(ID) == first
    assert loopback.fetched() == []


def test_a_new_commit_fetches_only_what_changed(
    loopback: LoopbackHub, phi3win: dict[str, bytes]
) -> None:
    loopback.add(ID, phi3win)
    first = hub.fetch(ID)
    loopback.fetched()
    second_commit = loopback.add(ID, {**phi3win, "generation_config.json": b"{}"})
    second = hub.fetch(ID)
    assert loopback.fetched() == ["generation_config.json"]
    assert second.name == second_commit != first.name
    assert (first / "generation_config.json").read_bytes() == phi3win["generation_config.json"]


def test_a_revision_is_a_branch_a_tag_or_a_commit(
    loopback: LoopbackHub, phi3win: dict[str, bytes]
) -> None:
    main = loopback.add(ID, {**phi3win, "README.md": b"main"})
    branch = loopback.add(ID, {**phi3win, "README.md": b"branch"}, "refs/pr/1")
    tag = loopback.add(ID, {**phi3win, "README.md": b"tag"}, "v1.0")
    assert hub.fetch(f"{ID}@refs/pr/1").name == branch
    assert hub.fetch(f"{ID}@v1.0").name == tag
    assert hub.fetch(f"{ID}@{main}").name == main
    assert (hub.fetch(f"{ID}@main") / "README.md").read_bytes() == b"main"
    assert pq.open(f"{ID}@refs/pr/1").name == "tiny-phi"


def test_offline_takes_the_cached_snapshot(
    loopback: LoopbackHub, phi4mini: dict[str, bytes], offline: Callable[[], None]
) -> None:
    main = loopback.add(ID, phi4mini)
    tag = loopback.add(ID, {**phi4mini, "README.md": b"tag"}, "v1.0")
    online = [hub.fetch(ID), hub.fetch(f"{ID}@v1.0")]
    loopback.requests.clear()
    offline()
    assert [hub.fetch(ID), hub.fetch(f"{ID}@v1.0")] == online
    assert hub.fetch(f"{ID}@{tag}") == online[1]
    assert online[0].name == main
    assert loopback.requests == []


def test_offline_without_a_snapshot_says_what_is_missing(
    loopback: LoopbackHub, phi4mini: dict[str, bytes], offline: Callable[[], None]
) -> None:
    loopback.add(ID, phi4mini)
    folder = hub.fetch(ID)
    (folder / "model-00002-of-00002.safetensors").unlink()
    offline()
    with pytest.raises(pq.IoError, match=r"acme/other@main is not in the cache .*HF_HUB_OFFLINE"):
        hub.fetch("acme/other")
    with pytest.raises(pq.IoError, match=r"tiny-phi@v9 is not in the cache .*hf download acme"):
        hub.fetch(f"{ID}@v9")
    with pytest.raises(pq.IoError, match=r"model-00002-of-00002.safetensors is missing"):
        hub.fetch(ID)


def test_an_unreachable_hub_leaves_the_cached_snapshot(
    loopback: LoopbackHub, phi3win: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    loopback.add(ID, phi3win)
    folder = hub.fetch(ID)
    loopback.close()
    assert hub.fetch(ID) == folder
    assert "cannot be reached" in caplog.text
    with pytest.raises(pq.IoError, match=r"acme/other@main is not in the cache.*cannot be reached"):
        hub.fetch("acme/other")


def test_a_login_page_is_not_taken_for_a_hub(loopback: LoopbackHub) -> None:
    loopback.portal = True
    with pytest.raises(pq.IoError, match="is no hub"):
        hub.fetch(ID)


def test_what_does_not_exist_is_named(loopback: LoopbackHub, phi3win: dict[str, bytes]) -> None:
    loopback.add(ID, phi3win)
    with pytest.raises(pq.IoError, match=r"no repository acme/none .*Check the spelling"):
        hub.fetch("acme/none")
    with pytest.raises(pq.IoError, match=r"acme/tiny-phi has no branch, tag or commit 'v9'"):
        hub.fetch(f"{ID}@v9")
    with pytest.raises(pq.IoError, match="no repository acme/none"):
        pq.open("acme/none")


def test_a_gated_model_names_the_page_and_the_login(
    loopback: LoopbackHub, phi3win: dict[str, bytes]
) -> None:
    loopback.add(ID, phi3win)
    loopback.repositories[ID].gated = True
    with pytest.raises(pq.IoError) as caught:
        hub.fetch(ID)
    assert "gated" in caught.value.cause
    assert caught.value.remedy is not None
    assert f"{loopback.endpoint}/{ID}" in caught.value.remedy
    assert "hf auth login" in caught.value.remedy
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["pytorch_model.bin"], r"pickled weights \(pytorch_model.bin\) and no safetensors"),
        (["phi-q4.gguf", "old.bin"], r"GGUF files and no safetensors.*hf download acme/tiny-phi"),
        (["vae/model.safetensors"], "no safetensors in its top folder"),
        (["a.safetensors", "b.safetensors"], "2 safetensors files but no model.safetensors.index"),
    ],
)
def test_a_repository_without_usable_weights_says_what_it_has(
    loopback: LoopbackHub, files: list[str], words: str
) -> None:
    loopback.add(ID, {"config.json": b"{}", **dict.fromkeys(files, b"x")})
    with pytest.raises(pq.PhiquantError, match=words) as caught:
        hub.fetch(ID)
    assert caught.value.exit_code == 3
    assert loopback.fetched() == []


def test_a_repository_without_config_is_refused(loopback: LoopbackHub) -> None:
    loopback.add(ID, {"model.safetensors": b"x"})
    with pytest.raises(pq.FormatError, match=r"has no config\.json"):
        hub.fetch(ID)


@pytest.mark.parametrize("shard", ["../secret", "/etc/passwd", "model-00003-of-00002.safetensors"])
def test_an_index_fetches_only_files_of_its_repository(loopback: LoopbackHub, shard: str) -> None:
    index = json.dumps({"weight_map": {"w": shard}}).encode()
    loopback.add(ID, {"config.json": b"{}", "model.safetensors.index.json": index})
    with pytest.raises(pq.FormatError, match="which the repository does not have"):
        hub.fetch(ID)
    assert loopback.fetched() == ["model.safetensors.index.json"]


def test_a_small_disk_is_told_before_the_weights(
    loopback: LoopbackHub, phi4mini: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    loopback.add(ID, phi4mini)
    index = "model.safetensors.index.json"
    rest = sum(len(content) for name, content in phi4mini.items() if name != index)
    usage = SimpleNamespace(free=rest - 1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(pq.IoError, match=r"10\.\d MB, and 10\.\d MB are free.*HF_HOME"):
            hub.fetch(ID)
    assert loopback.fetched() == [index]
    # Once it is there, it takes no room: neither under this commit nor under the next.
    hub.fetch(ID)
    loopback.add(ID, {**phi4mini, "README.md": b"new"})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=len(b"new")))
        assert (hub.fetch(ID) / "README.md").read_bytes() == b"new"


def test_a_download_that_breaks_off_leaves_nothing_broken(
    loopback: LoopbackHub, phi4mini: dict[str, bytes], tmp_path: Path, offline: Callable[[], None]
) -> None:
    loopback.add(ID, phi4mini)
    last = "model-00002-of-00002.safetensors"
    loopback.cut[last] = 4096
    with pytest.raises(
        pq.IoError, match=r"download of acme/tiny-phi broke off.*same command again"
    ):
        hub.fetch(ID)
    # Nothing that a later run, or another program, could take for the shard.
    left = {path.name for path in (tmp_path / "hf" / "hub").rglob("*")}
    assert not left & {last, blob_of(last, phi4mini[last])}
    loopback.cut.clear()
    loopback.requests.clear()
    folder = hub.fetch(ID)
    assert loopback.fetched() == [last]
    assert (folder / last).read_bytes() == phi4mini[last]


def test_a_damaged_cache_is_noticed(loopback: LoopbackHub, phi3win: dict[str, bytes]) -> None:
    loopback.add(ID, phi3win)
    weights = (hub.fetch(ID) / "model.safetensors").resolve()
    os.truncate(weights, 1000)
    with pytest.raises(
        pq.FormatError, match=r"has 1000 bytes, and \d+ on the hub.*delete"
    ) as caught:
        hub.fetch(ID)
    assert str(weights) in str(caught.value)


def test_blobs_that_repositories_share_are_the_checkpoint_s_own(
    loopback: LoopbackHub, phi3win: dict[str, bytes], tmp_path: Path
) -> None:
    # huggingface_hub 2 keeps Xet files once a cache, at HUB/blobs/2 DIGITS/HASH, and a repository's
    # blob is a link to that.
    loopback.add(ID, phi3win)
    folder = hub.fetch(ID)
    for name in ("model.safetensors", "tokenizer.model", "tokenizer.json"):
        blob = (folder / name).resolve()
        digest = hashlib.sha256(phi3win[name]).hexdigest()
        shared = tmp_path / "hf" / "hub" / "blobs" / digest[:2] / digest
        shared.parent.mkdir(parents=True)
        blob.rename(shared)
        blob.symlink_to(os.path.relpath(shared, blob.parent))
    assert len(pq.open(ID)) > 0
    pq.plan(ID, to="gguf:q8_0")  # which reads the tokenizer


def test_bars_are_shown_only_when_asked(
    loopback: LoopbackHub,
    phi3win: dict[str, bytes],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TQDM_POSITION", "-1")  # bars even where stderr is no terminal
    loopback.add(ID, phi3win)
    loopback.add("acme/other", {**phi3win, "README.md": b"x"})
    hub.fetch(ID)
    assert capfd.readouterr() == ("", "")
    hub.fetch("acme/other", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "model.safetensors" in err


def test_the_hub_s_library_is_imported_only_for_ids() -> None:
    code = "import sys, phiquant.hub; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


CONVERT = "import sys, phiquant as pq; pq.convert(sys.argv[1], to='gguf:q8_0', out=sys.argv[2])"


def test_converting_an_id_gives_what_converting_the_folder_gives(
    phi4mini: dict[str, bytes], tmp_path: Path
) -> None:
    with LoopbackHub() as server:
        server.add(ID, phi4mini)
        out = tmp_path / "from-hub.gguf"
        command = [sys.executable, "-c", CONVERT, ID, str(out)]
        subprocess.run(command, env=environment(server, tmp_path / "hf"), check=True)
        assert set(server.fetched()) == set(phi4mini)
        again = tmp_path / "offline.gguf"
        command = [sys.executable, "-c", CONVERT, ID, str(again)]
        alone = environment(server, tmp_path / "hf", HF_HUB_OFFLINE="1")
        subprocess.run(command, env=alone, check=True)
        assert server.requests == []
    folder = tmp_path / "tiny-phi"
    folder.mkdir()
    for name, content in phi4mini.items():
        (folder / name).write_bytes(content)
    local = tmp_path / "local.gguf"
    pq.convert(folder, to="gguf:q8_0", out=local)
    assert out.read_bytes() == local.read_bytes()
    assert again.read_bytes() == local.read_bytes()


def test_ctrl_c_ends_a_download_and_leaves_nothing(
    phi4mini: dict[str, bytes], tmp_path: Path
) -> None:
    with LoopbackHub() as server:
        server.add(ID, phi4mini)
        server.held["model-00001-of-00002.safetensors"] = 1 << 20
        out = tmp_path / "out.gguf"
        process = subprocess.Popen(
            [sys.executable, "-c", CONVERT, ID, str(out)],
            env=environment(server, tmp_path / "hf"),
            stderr=subprocess.PIPE,
            preexec_fn=child_signals.heed,
        )
        assert server.sending.wait(60)
        process.send_signal(signal.SIGINT)
        # Well above the second that it may take; the shard itself would never have come.
        process.communicate(timeout=20)
        assert process.returncode not in (0, None)
    left = {path.name for path in tmp_path.rglob("*")}
    first = "model-00001-of-00002.safetensors"
    assert not left & {"out.gguf", first, blob_of(first, phi4mini[first])}
