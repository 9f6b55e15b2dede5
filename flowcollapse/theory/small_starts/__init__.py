"""The theory of small starts: escape from the origin, learning curves, limits, predictions."""
