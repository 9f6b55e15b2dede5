"""Linear algebra that JAX does not have, or not for lanes."""
