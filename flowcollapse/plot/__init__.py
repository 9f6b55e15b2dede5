"""Figures from Datasets. Every function draws on given axes or on new ones, and returns the axes."""

from ._style import save as save
from .beside import beside as beside
from .comparison import (
    comparison as comparison,
    comparison_distance as comparison_distance,
    comparison_ends as comparison_ends,
    comparison_paths as comparison_paths,
)
from .measured import measurement as measurement
from .moving import animate as animate
from .overview import sweep as sweep
from .paper import IN_A_PATH as IN_A_PATH, figure1 as figure1, figure2 as figure2, path as path
from .stability import stability as stability
from .sweeps import bands as bands, heatmap as heatmap, limit as limit, verdicts as verdicts
