"""The ways from a start to a path: gradient flows and discrete descents."""
