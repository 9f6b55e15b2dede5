"""What runs leave behind: trajectories, their labels, tables and provenance."""
