"""Which model explains a measured run: curves of training as the escape of a small start, fitted by least squares."""
