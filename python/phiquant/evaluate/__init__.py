"""What a quantized model is worth: its distance from the original, in answers and in weights."""

from __future__ import annotations

from phiquant.evaluate.benchmark import Benchmark, Measured, Speed, bench
from phiquant.evaluate.comparison import Comparison, TensorDifference, compare
from phiquant.evaluate.evaluation import Evaluation, Score, evaluate
from phiquant.evaluate.gates import Gates, Miss
from phiquant.evaluate.repetition import Loop, Repetition
from phiquant.evaluate.verification import Check, Verification, verify

__all__ = [
    "Benchmark",
    "Check",
    "Comparison",
    "Evaluation",
    "Gates",
    "Loop",
    "Measured",
    "Miss",
    "Repetition",
    "Score",
    "Speed",
    "TensorDifference",
    "Verification",
    "bench",
    "compare",
    "evaluate",
    "verify",
]
