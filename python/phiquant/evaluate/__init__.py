"""What a quantized model is worth: its distance from the original."""

from __future__ import annotations

from phiquant.evaluate.evaluation import Evaluation, Score, evaluate
from phiquant.evaluate.gates import Gates, Miss

__all__ = ["Evaluation", "Gates", "Miss", "Score", "evaluate"]
