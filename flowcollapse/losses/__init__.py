"""Losses of the logits."""

from .base import Loss as Loss
from .registry import LOSSES as LOSSES
