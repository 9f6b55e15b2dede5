"""When a run has done its work, and what may be said of where it ended."""
