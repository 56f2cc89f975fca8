"""OpenVINO folders that must be refused, each with words that say why, in little memory."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from bounds import little_memory

import phiquant as pq
from phiquant.description import describe
from phiquant.errors import FormatError, IoError, PhiquantError, UnsupportedError
from phiquant.openvino import MAX_XML, read_network
from places import DATA

pytestmark = pytest.mark.timeout(20)

CODES = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "out"
    pq.convert(DATA / "phi4mini", "openvino:int4_asym,group=64,awq", path)
    return path


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "copy")
    return tmp_path / "copy"


def edit(folder: Path, pattern: str, new: str, count: int = 1) -> None:
    """Replace in the model's XML; the pattern must be found."""
    path = folder / "openvino_model.xml"
    text, found = re.subn(pattern, new, path.read_text(encoding="utf-8"), count=count, flags=re.S)
    assert found
    path.write_text(text, encoding="utf-8")


def constant(name: str, attribute: str) -> str:
    """A pattern of a constant's attribute: what stands before it, and its value."""
    return rf'(name="{re.escape(name)}" type="Const".{{0,200}}? {attribute}=")([^"]*)'


def test_the_sound_folder_opens(sound: Path) -> None:
    opened = pq.open(sound)
    assert opened.format == "openvino"
    assert opened[CODES].dequantize().shape == (256, 1024)


@pytest.mark.parametrize(
    ("pattern", "new", "words"),
    [
        (r'version="11"', 'version="12"', "no OpenVINO IR"),
        (r"<net ", "<nut ", "no OpenVINO IR|no XML"),
        (r"</net>.*", "", "no XML"),
        (r"<edges>.*?</edges>", "<edges></edges>", "an input without an edge"),
        (r'to-port="0"', 'to-port="9"', "edge to port"),
        (r'from-layer="\d+"', 'from-layer="99999999"', "edge from port"),
        (r"(<edge [^>]*/>)", r"\1\1", "input with two edges"),
        (r'<layer id="1"', '<layer id="0"', "two layers with the id"),
        (r'<layer id="1"', '<layer id="-1"', "a layer's id"),
        (r'<layer id="1"', f'<layer id="{"9" * 5000}"', "a layer's id"),
        (constant(CODES, "offset"), r"\g<1>999999999", "past the end"),
        (constant(CODES, "offset"), r"\g<1>-64", "a constant's offset"),
        (constant(CODES, "size"), r"\g<1>9223372036854775807", "past the end"),
        (constant(CODES, "size"), r"\g<1>64", "need 131072"),
        (constant(CODES, "shape"), r"\g<1>256, 16, 32", "has 131072 bytes"),
        (constant(CODES, "shape"), r"\g<1>4294967296, 4294967296, 64", "more elements"),
        (constant(CODES, "shape"), r"\g<1>256, 16, x", "an extent"),
        (constant(f"{CODES}/scale", "shape"), r"\g<1>16, 256, 1", "in the shape"),
        (constant(f"{CODES}/zero_point", "shape"), r"\g<1>16, 256, 1", "in the shape"),
        (constant(f"{CODES}/input_scale", "shape"), r"\g<1>1024", "has factors of its inputs"),
        (constant(f"{CODES}/input_scale", "element_type"), r"\g<1>i32", "is i32 in the shape"),
        (constant(f"{CODES}/input_scale", "offset"), r"\g<1>999999999", "past the end"),
    ],
)
def test_damaged_xml_is_refused(copy: Path, pattern: str, new: str, words: str) -> None:
    edit(copy, pattern, new)
    with little_memory(), pytest.raises(FormatError, match=words) as caught:
        pq.open(copy)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("pattern", "new", "words"),
    [
        (constant(CODES, "element_type"), r"\g<1>i4", "zero points of u4"),
        (constant(CODES, "shape"), r"\g<1>256, 8, 128", "scales or zero points"),
        (constant(CODES, "element_type"), r"\g<1>nf4", "zero points of u4"),
        (constant(CODES, "element_type"), r"\g<1>f4e2m1", "scales or zero points of f16"),
        (r'name="layers.0.ffn_down" type="MatMul"', 'name="x" type="Add"', "used by a Add"),
        (r'type="Subtract"', 'type="Add"', "used by a Add"),
    ],
)
def test_weights_that_phiquant_does_not_write_are_refused(
    copy: Path, pattern: str, new: str, words: str
) -> None:
    edit(copy, pattern, new, count=0 if "Subtract" in pattern else 1)
    with pytest.raises((UnsupportedError, FormatError), match=words):
        pq.open(copy)


def test_small_floats_of_other_shapes_are_refused(tmp_path: Path) -> None:
    pq.convert(DATA / "phi4mini", "openvino:mxfp4", tmp_path / "out")
    assert pq.open(tmp_path / "out")[CODES].codec.name == "mxfp4,layout=openvino"
    edit(tmp_path / "out", constant(f"{CODES}/scale", "shape"), r"\g<1>32, 256, 1")
    with pytest.raises(FormatError, match="in the shape"):
        pq.open(tmp_path / "out")


@pytest.mark.parametrize(
    "declaration",
    [
        # A billion laughs, a file that is none of ours, and a declaration by itself.
        "<!DOCTYPE net ["
        + "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "ha"}">' for i in range(12))
        + "]>",
        '<!DOCTYPE net [<!ENTITY secret SYSTEM "file:///etc/passwd">]>',
        "<!DOCTYPE net>",
    ],
)
def test_documents_with_declarations_are_refused(copy: Path, declaration: str) -> None:
    edit(copy, r"(<\?xml[^>]*>)", rf"\1{declaration}")
    edit(copy, r'<net name="phiquant"', '<net name="phiquant" x="&e11;&secret;"')
    with little_memory(128 << 20), pytest.raises(FormatError, match="document type declaration"):
        pq.open(copy)


def test_an_xml_of_any_size_or_depth_takes_little_memory(copy: Path) -> None:
    path = copy / "openvino_model.xml"
    path.write_text('<net version="11">' + "<layers>" * 100_000, encoding="utf-8")
    with little_memory(), pytest.raises(FormatError, match="nests"):
        read_network(path)
    with path.open("r+b") as file:
        file.truncate(MAX_XML + 1)
    with little_memory(), pytest.raises(FormatError, match="at most"):
        read_network(path)


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"\xff\xfe<", b"GGUF", b"<net version='11'>"])
def test_what_is_no_xml_is_refused(copy: Path, data: bytes) -> None:
    (copy / "openvino_model.xml").write_bytes(data)
    with pytest.raises(FormatError):
        pq.open(copy)


def test_a_truncated_or_missing_binary_is_refused(copy: Path) -> None:
    binary = copy / "openvino_model.bin"
    with binary.open("r+b") as file:
        file.truncate(binary.stat().st_size - 1)
    with pytest.raises(FormatError, match=r"past the end of openvino_model\.bin"):
        pq.open(copy)
    binary.unlink()
    with pytest.raises(IoError, match=r"openvino_model\.bin"):
        pq.open(copy)


def test_every_cut_and_many_flips_of_the_xml_are_refused_or_read(copy: Path) -> None:
    path = copy / "openvino_model.xml"
    data = path.read_bytes()
    for cut in range(0, len(data), len(data) // 60):
        path.write_bytes(data[:cut])
        with pytest.raises(FormatError):
            read_network(path)
    for at in range(7, len(data), len(data) // 150):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 7)
        path.write_bytes(flipped)
        try:
            pq.open(copy)
        except PhiquantError as error:
            assert error.exit_code in (3, 4), error


def test_a_config_of_another_model_is_refused(copy: Path) -> None:
    shutil.copy(DATA / "phi35" / "config.json", copy / "config.json")
    with pytest.raises(PhiquantError, match=r"lacks|config"):
        describe(pq.open(copy))
