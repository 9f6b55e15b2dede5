"""Many runs at once: the grid, the engine, the store, clusters."""
