"""Flow against descent from the same starts, matched in time."""
