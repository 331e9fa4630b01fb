"""Reads that every SQL engine makes with the same statements."""
