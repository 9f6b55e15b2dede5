"""The solvers of the flow, by name, and their step control."""
