"""Many runs: the grid of lanes, the engine that runs them on every device, the store that keeps them, and the verb."""
