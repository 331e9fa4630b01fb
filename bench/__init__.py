"""Benchmarks: programs that measure the product as processes, outside the gate of the tests."""
