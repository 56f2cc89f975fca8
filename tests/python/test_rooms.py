"""The house keeps its walls: a room uses only rooms above it, and Python stays in the bindings."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From DESIGN: a room may use only rooms before it. Formats and pipeline do not know each other.
ROOMS = ("base", "io", "tensor", "kernels", "codecs", "formats", "pipeline", "bindings")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def includes(path: Path) -> list[tuple[str, str]]:
    return INCLUDE.findall(path.read_text())


def sources() -> list[Path]:
    return sorted(p for p in (ROOT / "src").rglob("*") if p.suffix in (".hpp", ".cpp"))


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_a_source_includes_only_rooms_above_its_own(path):
    own = ROOMS.index(path.relative_to(ROOT / "src").parts[0])
    for kind, name in includes(path):
        if kind == '"':
            room = name.split("/")[0]
            assert room in ROOMS, f"{name} names no room"
            assert ROOMS.index(room) <= own, f"{path.name} reaches down to {name}"
            assert (ROOT / "src" / name).exists()


def test_only_bindings_include_python():
    for path in sources():
        for _, name in includes(path):
            if name == "Python.h" or name.startswith("pybind11"):
                assert path.is_relative_to(ROOT / "src" / "bindings"), path


def test_kernels_hold_no_standard_containers():
    for path in (ROOT / "src" / "kernels").glob("*.hpp"):
        if path.name == "dispatch.hpp":
            continue  # not compiled per instruction set
        banned = {"vector", "string", "map", "algorithm", "functional", "memory"}
        assert not banned & {name for _, name in includes(path)}, path


def modules() -> dict[str, Path]:
    base = ROOT / "python"
    found = {}
    for path in (base / "phiquant").rglob("*.py"):
        parts = path.relative_to(base).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_at_load(name: str, path: Path, known: set[str]) -> set[str]:
    """Modules of phiquant that importing this one imports (not those inside functions)."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    nodes = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif node.module:
            names = {f"{node.module}.{a.name}" for a in node.names}
            found |= names
            if not names <= known:  # else only submodules are taken from the package
                found.add(node.module)
    found &= known
    # `from phiquant import x` runs the package first; that is how every import begins.
    return found - {"phiquant", name}


def test_modules_import_each_other_without_circles():
    table = modules()
    graph = {name: imports_at_load(name, path, set(table)) for name, path in table.items()}
    graph.pop("phiquant")
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name in done:
            return
        for other in sorted(graph.get(name, ())):
            visit(other, (*way, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_knowledge_of_models_does_not_know_targets():
    for name, path in modules().items():
        used = imports_at_load(name, path, set(modules()))
        if name.startswith("phiquant.architectures"):
            assert not any(".targets" in u or ".recipes" in u or ".plan" in u for u in used), name
        if name.startswith(("phiquant.recipes", "phiquant.tokenizer")):
            assert not any(".targets" in u or u.endswith(".plan") for u in used), name


def test_no_heavy_peer_is_imported_at_run_time():
    banned = {
        "torch",
        "transformers",
        "onnx",
        "onnxruntime",
        "openvino",
        "mlx",
        "gguf",
        "safetensors",
    }
    for name, path in modules().items():
        tree = ast.parse(path.read_text())
        # A runtime imports its peer when it is asked to run something, inside a function.
        own = name.startswith("phiquant.runtimes.")
        for node in tree.body if own else ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [node.module]
            assert not banned & {n.split(".")[0] for n in names}, name


def test_no_module_has_the_name_of_a_public_function():
    """Importing such a module would put it in the function's place."""
    import phiquant

    # These two are imported with the package, and the function is put in their place at once.
    names = {name for name in phiquant.__all__ if callable(getattr(phiquant, name))}
    assert {name for name in names if f"phiquant.{name}" in modules()} <= {"convert", "plan"}
