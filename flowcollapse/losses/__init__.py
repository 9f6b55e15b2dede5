"""Losses of the logits: the protocol, the squared error, cross-entropy, the focal loss, and the losses by name."""

from .base import AbstractLoss as AbstractLoss
from .cross_entropy import CrossEntropy as CrossEntropy
from .focal import Focal as Focal
from .registry import LOSSES as LOSSES
from .squared import Squared as Squared
