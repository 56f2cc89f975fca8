"""The reference run: a decoder's forward pass in NumPy, float32, one layer's weights at a time."""

from __future__ import annotations

from phiquant.description import describe
from phiquant.reference.decoder import Decoder, OnLinearInput
from phiquant.reference.weights import Weights

__all__ = ["Decoder", "OnLinearInput", "Weights", "describe"]
