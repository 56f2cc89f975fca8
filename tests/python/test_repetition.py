"""Evaluation says what greedy texts repeat, and where a model loops and its source does not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_process import phiquant

import phiquant as pq
from phiquant.evaluate import evaluate
from phiquant.evaluate.repetition import Texts, default_count, ends_of, loop_of, repeated
from phiquant.measure.store import Store
from phiquant.reference import Decoder
from phiquant.reference.generation import greedy
from places import DATA

SETTINGS: dict[str, Any] = {"context": 64, "tokens": 512, "threads": 1}


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("thequickbrownfox", None),
        ("the theththththth", (7, 2)),  # from the last "th th" of "theth" on
        ("oneaaaaaaaa", (3, 1)),
        ("onaaaaaaa", None),  # 7 tokens are too few
        ("abcabcabc", (0, 3)),
        ("abcdabcd", None),  # twice is no loop
        ("xabcabcabca", (1, 3)),  # the last piece may be cut
        ("abcabcabcx", None),  # it has ended
        ("", None),
    ],
)
def test_a_loop_is_a_piece_that_goes_on_to_the_end(text: str, loop: tuple[int, int] | None) -> None:
    assert loop_of([ord(letter) for letter in text]) == loop


def test_loops_are_those_that_a_regular_expression_finds() -> None:
    random = np.random.default_rng(0)
    seen = 0
    for _ in range(2000):
        letters = random.integers(0, 3, random.integers(0, 12)).tolist()
        piece = random.integers(0, 3, random.integers(1, 5)).tolist()
        text = "".join("abc"[x] for x in letters + piece * int(random.integers(1, 6)))
        # The shortest period of the longest tail that has one; searched from the left.
        found = None
        for period in range(1, len(text) // 3 + 1):
            match = re.search(
                rf"(?s)(?=(.{{{period}}})\1\1)(?:(.)(?=.{{{period - 1}}}\2|.{{0,{period - 1}}}$))+$",
                text,
            )
            tail = len(text) - match.start() if match else 0
            if match and tail >= max(8, 3 * period):
                found = match.start(), period
                break
        assert loop_of([ord(letter) for letter in text]) == found, text
        seen += found is not None
    assert 200 < seen < 1800


def test_what_is_said_again_is_counted_in_runs_of_four() -> None:
    assert repeated([1, 2, 3, 4, 5, 6]) == 0
    assert repeated([1, 1, 1, 1, 1, 1, 1]) == 3 / 4  # four runs, all the same
    assert repeated([1, 2, 3, 4, 1, 2, 3, 4]) == 1 / 5
    assert repeated([1, 2, 3]) == 0


def test_a_text_ends_with_the_token_that_ends_it() -> None:
    decoder = Decoder(pq.open(DATA / "phi35"), threads=1)
    prompts = np.arange(100, 148).reshape(3, 16)
    whole = greedy(decoder, prompts, 12)
    assert [len(text) for text in whole] == [12, 12, 12]
    end = whole[1][5]
    cut = greedy(decoder, prompts, 12, ends={end})
    for text, before in zip(cut, whole, strict=True):
        last = before.index(end) + 1 if end in before else 12
        assert text == before[:last]
    assert len(cut[1]) <= 6


def test_special_tokens_end_texts(converted: Any) -> None:
    config = json.loads((DATA / "phi35" / "config.json").read_text())
    for model in (DATA / "phi35", converted("phi35", "q8_0")):
        ends = ends_of(pq.open(model), 4096)
        assert config["eos_token_id"] in ends and len(ends) < 4


def test_prompts_are_the_beginnings_of_windows(converted: Any) -> None:
    decoder = Decoder(pq.open(DATA / "phi35"), threads=1)
    ids = np.random.default_rng(2).integers(0, 4096, (20, 40))
    texts = Texts(decoder, [], ids, 4)
    chosen = [0, 2, 5, 7, 10, 12, 15, 17]
    (its,) = texts.run(lambda done: None)
    wanted = greedy(decoder, ids[chosen, :32], 4)
    assert its is not None
    assert its.share == np.mean([repeated(text) for text in wanted])


def test_loops_of_a_model_that_lost_much_are_reported(
    converted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad.gguf"
    pq.convert(DATA / "phi35", "q2_0", bad)
    models = [DATA / "phi35", converted("phi35", "q8_0"), bad]
    result = evaluate(models, DATA / "phi35", cache=False, repetition=32, **SETTINGS)
    same, _, worse = (score.repetition for score in result.scores)
    assert same is not None and worse is not None and result.source_repetition is not None
    assert same == result.source_repetition and same.new == ()
    assert worse.share > result.source_repetition.share
    assert worse.new and all(not loop.in_source for loop in worse.new)
    shown = str(result)
    for loop in worse.new:
        many = f"{loop.period} token{'s' * (loop.period > 1)}"
        line = f"{bad}: after prompt {loop.prompt + 1}, a loop of {many} from token"
        assert line in shown
    assert f"{DATA / 'phi35'}: after prompt" not in shown
    # The model's own layers ran, each as often as there were passes, and no more than tokens.
    without = evaluate(bad, DATA / "phi35", cache=False, repetition=0, **SETTINGS)
    assert without.scores[0].repetition is None and without.source_repetition is None
    assert "after prompt" not in str(without)
    assert without.scores[0].mean_kld == result.scores[2].mean_kld
    with pytest.raises(pq.UsageError, match="repetition must be a number from 0 on"):
        evaluate(bad, DATA / "phi35", repetition=-1, **SETTINGS)


def test_by_default_greedy_texts_take_a_small_share_of_the_time(converted: Any) -> None:
    """A pass costs as much as a hundred tokens: one for 640 is about an eighth, source included."""
    assert [default_count(tokens) for tokens in (64, 5119, 5120, 7680, 20479, 10**6)] == [
        *(0, 0, 8, 12, 31, 32)
    ]
    without = evaluate(DATA / "phi35", DATA / "phi35", cache=False, **SETTINGS)
    assert without.source_repetition is None and "repeats" not in str(without)
    long = evaluate(DATA / "phi35", DATA / "phi35", cache=False, **(SETTINGS | {"tokens": 5120}))
    assert long.source_repetition is not None and "repeats" in str(long)


def test_texts_are_kept_for_the_next_run(
    converted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    load = Decoder._load

    def spy(self: Decoder, index: int) -> Any:
        seen.append(self.checkpoint.name)
        return load(self, index)

    monkeypatch.setattr(Decoder, "_load", spy)
    store = Store(tmp_path / "store")
    settings = SETTINGS | {"repetition": 8}
    four = converted("phi35", "q4_0")
    first = evaluate(four, DATA / "phi35", cache=store, **settings)
    # One pass for each token at most, and one for the evaluation itself.
    assert seen.count("phi35") <= 6 * (8 + 1) and seen.count("phi35-q4_0") <= 6 * (8 + 1)
    seen.clear()
    again = evaluate(four, DATA / "phi35", cache=store, **settings)
    assert seen == [] and again.scores == first.scores
    both = evaluate([four, converted("phi35", "q8_0")], DATA / "phi35", cache=store, **settings)
    assert set(seen) == {"phi35-q8_0"} and both.scores[0] == first.scores[0]
    # What they are told is in the key: fewer tokens are other texts.
    seen.clear()
    evaluate(four, DATA / "phi35", cache=store, **(settings | {"repetition": 4}))
    assert set(seen) == {"phi35", "phi35-q4_0"}


def test_the_command_has_it_in_json(converted: Any) -> None:
    options = ["--context", "64", "--tokens", "256", "--threads", "1", "--no-cache", "--json"]
    command = ["eval", converted("phi35", "q4_0"), "--against", DATA / "phi35", *options]
    facts = json.loads(phiquant(*command, "--repetition", "12").stdout)
    its, source = facts["models"][0]["repetition"], facts["source_repetition"]
    assert set(its) == set(source) == {"share", "loops"}
    assert 0 <= its["share"] <= 1
    assert json.loads(phiquant(*command, "--repetition", "0").stdout)["source_repetition"] is None
    assert phiquant(*command, "--repetition", "-1").returncode == 2
