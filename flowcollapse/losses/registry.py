"""The losses by name."""

from .base import Loss, _half_squared_norm, _residual

LOSSES: dict[str, Loss] = {
    "squared": Loss(_half_squared_norm, _residual, separates_columns=True),
}
