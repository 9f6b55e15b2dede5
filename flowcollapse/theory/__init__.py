"""What is known of the flow without running it: limits of small starts, learning curves, predictions."""

from . import curves as curves, limits as limits, prediction as prediction
