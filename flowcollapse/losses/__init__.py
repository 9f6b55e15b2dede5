"""Losses of the logits: the protocol, the squared error, and the losses by name."""

from .base import AbstractLoss as AbstractLoss
from .registry import LOSSES as LOSSES
from .squared import Squared as Squared
