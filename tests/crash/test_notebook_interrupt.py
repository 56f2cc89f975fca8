"""Ctrl-C (the stop button) in a notebook ends a conversion, leaves nothing, and the kernel lives on."""

from __future__ import annotations

import queue
import sys
import time
from pathlib import Path

import pytest

from tiny_model import write_model

pytestmark = [
    pytest.mark.skipif(sys.version_info < (3, 11), reason="ipykernel 7 needs Python 3.11"),
    # jupyter_client says that a kernel on this machine's loopback is not encrypted.
    pytest.mark.filterwarnings("ignore"),
]

CONVERT = """
import phiquant as pq
plan = pq.plan({model!r}, "q3_k_s", quality="best")
plan.run({out!r}, threads=1, progress=lambda done, total: print("running", flush=True))
"""


def test_a_stopped_cell_leaves_nothing_and_the_next_cell_runs(tmp_path: Path) -> None:
    from jupyter_client.manager import start_new_kernel

    # Long enough to be stopped in its midst: progress is told ten times a second.
    model = write_model(tmp_path / "model", vocab_size=60_000)
    out = tmp_path / "out"
    out.mkdir()
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        asked = client.execute(CONVERT.format(model=str(model), out=str(out)))
        end, interrupted = time.monotonic() + 120, False
        while time.monotonic() < end and not interrupted:
            try:
                said = client.get_iopub_msg(timeout=10)
            except queue.Empty:
                continue
            assert said["msg_type"] != "error", said["content"]
            if said["msg_type"] == "stream":
                manager.interrupt_kernel()
                interrupted = True
        assert interrupted
        reply = client.get_shell_msg(timeout=60)
        assert reply["parent_header"]["msg_id"] == asked
        assert reply["content"]["status"] == "error", reply["content"]
        assert reply["content"]["ename"] == "KeyboardInterrupt", reply["content"]
        assert list(out.iterdir()) == []
        client.execute(f"report = pq.convert({str(model)!r}, 'q8_0', {str(out)!r})")
        assert client.get_shell_msg(timeout=60)["content"]["status"] == "ok"
        assert [path.name for path in out.iterdir()] == ["model-q8_0.gguf"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
