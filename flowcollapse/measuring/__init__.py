"""Measures the features of networks that are kept in files."""
