"""What a quantized model is worth: its distance from the original, in answers and in weights."""

from __future__ import annotations

from phiquant.evaluate.comparison import Comparison, TensorDifference, compare
from phiquant.evaluate.evaluation import Evaluation, Score, evaluate
from phiquant.evaluate.gates import Gates, Miss

__all__ = [
    "Comparison",
    "Evaluation",
    "Gates",
    "Miss",
    "Score",
    "TensorDifference",
    "compare",
    "evaluate",
]
