"""Linear algebra that JAX lacks, or lacks for lanes."""
