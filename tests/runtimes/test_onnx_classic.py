"""Classic 8-bit ONNX folders, weights and activations, beside onnxruntime.quantization's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import phiquant as pq
from onnx_peer import Session, classic, generated
from phiquant.description import describe
from phiquant.evaluate.evaluation import BUILT_IN
from phiquant.measure.ranges import Ranges, activation_ranges
from phiquant.measure.store import Store
from phiquant.measure.windows import read_text, windows
from phiquant.reference import Decoder
from places import DATA

FIXTURES = ("phi35", "phi4mini", "phi3win")
TOKENS = 1024
STATIC = ("minmax", "percentile")
Make = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """mine(fixture, kind) gives phiquant's folder: fp32, dynamic, minmax or percentile."""
    root = tmp_path_factory.mktemp("mine")
    targets = {"fp32": "onnx:fp32", "dynamic": "onnx:int8-dynamic"} | {
        ranges: f"onnx:int8-static,ranges={ranges},tokens={TOKENS}" for ranges in STATIC
    }

    def make(fixture: str, kind: str) -> Path:
        path = root / f"{fixture}-{kind}"
        if not path.exists():
            pq.convert(DATA / fixture, targets[kind], path)
        return path

    return make


@pytest.fixture(scope="module")
def theirs(mine: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """theirs(fixture, kind) gives onnxruntime.quantization's, of the same float32 graph."""
    root = tmp_path_factory.mktemp("theirs")

    def make(fixture: str, kind: str) -> Path:
        path = root / f"{fixture}-{kind}"
        if not path.exists():
            ids = None if kind == "dynamic" else calibration(fixture)
            classic(mine(fixture, "fp32"), path, ids, kind)
        return path

    return make


def calibration(fixture: str) -> np.ndarray:
    checkpoint = pq.open(DATA / fixture)
    text = read_text(BUILT_IN)
    return windows(checkpoint, text, vocabulary=4096, context=512, tokens=TOKENS)


def lost(folder: Path, fixture: str) -> float:
    """Mean relative error of the logits of several prompts, beside transformers' in float32."""
    session = Session(folder)
    recorded = np.load(DATA / fixture / "reference.npz")
    errors = []
    for name in sorted({name.split(".")[0] for name in recorded.files}):
        session.forget()
        wanted = recorded[f"{name}.logits"]
        found = session.feed(recorded[f"{name}.ids"])[-len(wanted) :]
        errors.append(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    return float(np.mean(errors))


def constants(folder: Path) -> dict[str, np.ndarray]:
    model = onnx.load(str(folder / "model.onnx"))
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


@pytest.mark.parametrize("fixture", FIXTURES)
@pytest.mark.parametrize("kind", ["dynamic", *STATIC])
def test_logits_are_no_further_off_than_onnx_runtimes_own(
    mine: Make, theirs: Make, fixture: str, kind: str
) -> None:
    """The same rounding, but of activations that differ in their last bits."""
    own, others = lost(mine(fixture, kind), fixture), lost(theirs(fixture, kind), fixture)
    print(f"{fixture} {kind}: {own:.4f}, ONNX Runtime {others:.4f}")
    assert own < 1.1 * others


@pytest.mark.parametrize("fixture", FIXTURES)
@pytest.mark.parametrize("kind", ["dynamic", "minmax"])
def test_weights_and_scales_are_onnx_runtimes(
    mine: Make, theirs: Make, fixture: str, kind: str
) -> None:
    own, others = constants(mine(fixture, kind)), constants(theirs(fixture, kind))
    found = {name for name in others if name.endswith(".weight_quantized")}
    assert len(found) == sum(name.endswith(".weight_Q8") for name in own) - (fixture == "phi4mini")
    for name in found:
        base = name.removesuffix("_quantized")
        assert np.array_equal(own[f"{base}_Q8"], others[name]), name
        assert own[f"{base}_scales"].tobytes() == others[f"{base}_scale"].tobytes(), name


@pytest.mark.parametrize("fixture", FIXTURES)
def test_ranges_of_activations_are_onnx_runtimes(mine: Make, theirs: Make, fixture: str) -> None:
    """But for the last bits of a forward pass in float32."""
    own, others = constants(mine(fixture, "minmax")), constants(theirs(fixture, "minmax"))
    names = {name for name in own if name.endswith("output_0_scale") and name in others}
    assert len(names) > 4
    for name in names:
        assert own[name] == pytest.approx(others[name], rel=1e-4), name
        zero = name.replace("_scale", "_zero_point")
        assert abs(int(own[zero]) - int(others[zero])) <= 1, name


def test_percentiles_leave_off_as_many_values_as_they_say() -> None:
    """To the bin: of values in any order, also where the histogram had to grow."""
    rng = np.random.default_rng(3)
    values = (rng.standard_t(2, (2000, 210)) + 0.5).astype(np.float32)
    values = values[np.argsort(np.abs(values).max(axis=1))]  # the bins grow again and again
    for name, sign in (("plain", 1), ("turned", -1)):
        ranges = Ranges()
        for at in range(0, len(values), 300):
            ranges(name, sign * values[at : at + 300])
        low, high = ranges.within(name)
        assert (ranges.sums[name][0], ranges.sums[name][1]) == (
            (sign * values).min(),
            (sign * values).max(),
        )
        # Of 420,000 values 2.1 a side.
        allowed, width = values.size * 5e-6, 2 * np.abs(values).max() / 2048
        for side, end in ((sign * values, high), (-sign * values, -low)):
            assert (side > end).sum() <= allowed < (side > end - width).sum()


@pytest.mark.parametrize("fixture", FIXTURES)
@pytest.mark.parametrize("kind", ["dynamic", "percentile"])
def test_tokens_one_by_one_are_as_near_as_whole_prompts(
    mine: Make, fixture: str, kind: str
) -> None:
    recorded = np.load(DATA / fixture / "reference.npz")
    ids, wanted = recorded["eval_short.ids"], recorded["eval_short.logits"]
    session = Session(mine(fixture, kind))
    whole = session.feed(ids)[-len(wanted) :]
    session.forget()
    begin = len(ids) - len(wanted)
    session.feed(ids[:begin])
    steps = np.concatenate([session.feed(ids[at : at + 1]) for at in range(begin, len(ids))])
    errors = [np.linalg.norm(found - wanted) / np.linalg.norm(wanted) for found in (whole, steps)]
    assert errors[1] < 1.1 * errors[0]


@pytest.mark.parametrize("fixture", ["phi35", "phi4mini"])
@pytest.mark.parametrize("kind", ["dynamic", "percentile"])
def test_genai_writes_what_the_logits_say(mine: Make, fixture: str, kind: str) -> None:
    ids = np.load(DATA / fixture / "reference.npz")["prose.ids"]
    session, wanted, more = Session(mine(fixture, kind)), [], ids
    for _ in range(8):
        more = session.feed(more)[-1:].argmax(axis=-1)
        wanted.append(int(more[0]))
    assert generated(mine(fixture, kind), ids.tolist(), 8) == wanted


@pytest.mark.parametrize("kind", ["dynamic", "minmax"])
def test_tied_embeddings_are_stored_once(mine: Make, kind: str) -> None:
    """As the output matrix's codes; and reading finds them under the embedding's name."""
    checkpoint = pq.open(mine("phi4mini", kind))
    assert "lm_head.weight" not in checkpoint
    table = checkpoint["model.embed_tokens.weight"]
    source = np.asarray(pq.open(DATA / "phi4mini")["model.embed_tokens.weight"])
    wanted = pq.quantize(source.astype(np.float32), "int8_sym_channel", rule="qdq")
    assert np.array_equal(table.dequantize(), wanted.dequantize())
    size = (mine("phi4mini", kind) / "model.onnx.data").stat().st_size
    assert size < 1.2 * sum(entry.nbytes for entry in checkpoint.entries.values())


def test_calibration_takes_a_text_and_its_result_is_kept(tmp_path: Path) -> None:
    source = DATA / "phi3win"
    checkpoint = pq.open(source)
    spec = describe(checkpoint)
    text = tmp_path / "Notes.txt"
    text.write_text("def f(x):\n    return [x ** 2 for x in range(10)]\n" * 40)
    store, steps = Store(tmp_path / "store"), []

    def ranges(**options: object) -> dict[str, tuple[float, float]]:
        steps.clear()
        return activation_ranges(
            checkpoint,
            spec,
            cache=store,
            progress=lambda done, total: steps.append(done),
            **options,
        )

    usual = ranges(tokens=256)
    assert steps
    own = ranges(text=text, tokens=256)
    assert steps and own != usual
    narrow = ranges(text=text, tokens=256, percentile=True)
    assert not steps, "percentiles are of the same measurement"
    for name, (low, high) in own.items():
        assert low <= narrow[name][0] <= 0 <= narrow[name][1] <= max(high, 0), name
    assert ranges(text=text, tokens=256) == own and not steps
    made = pq.convert(source, f"onnx:int8-static,text={text},tokens=256", tmp_path / "made").path
    metadata = pq.onnx.read(Path(made) / "model.onnx").metadata
    assert metadata["phiquant.target"] == "onnx:int8-static,text=Notes.txt,tokens=256"
    step = constants(Path(made))["/model/layers.0/input_layernorm/output_0_scale"]
    low, high = own["model.layers.0.self_attn.qkv_proj.weight"]
    assert step == np.float32((high - low) / 255)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("tokens=8", "'tokens' is no number"),
        ("tokens=many", "'tokens' is no number"),
        ("text", "'text' is without a file"),
        ("ranges=entropy", "'ranges' is 'entropy'"),
        ("block=32", "'block' is for int8 and int4"),
    ],
)
def test_options_that_make_no_sense_are_refused(words: str, said: str) -> None:
    with pytest.raises(pq.UsageError, match=said):
        pq.plan(DATA / "phi3win", f"onnx:int8-static,{words}")


def test_a_text_that_is_missing_or_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pq.IoError, match="missing"):
        pq.plan(DATA / "phi3win", f"onnx:int8-static,text={tmp_path / 'missing'}")
    short = tmp_path / "short"
    short.write_text("Hello")
    with pytest.raises(pq.UsageError, match="less than one window"):
        pq.plan(DATA / "phi3win", f"onnx:int8-static,text={short}")


@pytest.mark.parametrize(
    ("fixture", "target", "bound"),
    [
        ("phi35", "onnx:int4,positive-scales,ep=cuda", 0.01),
        ("phi35", "onnx:int8,positive-scales,scales=fp16,block=64", 0.02),
        ("phi4mini", "onnx:int4,positive-scales,qdq,mixed", 0.02),
        ("phi4mini", "onnx:int4,positive-scales,block=16", 0.02),
    ],
)
def test_positive_scales_run_in_every_graph(
    tmp_path: Path, fixture: str, target: str, bound: float
) -> None:
    """Near the reference run of their own weights; 0.02 where activations are rounded to int8."""
    made = tmp_path / "made"
    pq.convert(DATA / fixture, target, made)
    scales = [values for name, values in constants(made).items() if name.endswith("_scales")]
    assert len(scales) > 8
    assert all((values > 0).all() for values in scales)
    ids = np.load(DATA / fixture / "reference.npz")["prose.ids"]
    wanted = Decoder(pq.open(made))(ids[None], last=len(ids))[0]
    found = Session(made).feed(ids)
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < bound


def test_positive_scales_have_no_2_bits() -> None:
    with pytest.raises(pq.UsageError, match="positive-scales"):
        pq.plan(
            DATA / "phi35",
            "onnx:int4,positive-scales",
            tensor="onnx:*.down_proj.weight=int2_sym_g32",
        )
