"""The results of runs: trajectories, their labels, tables and provenance."""
