"""Ids, limits, errors and digests: values that every room shares.

Imports nothing from Kelpie and does no I/O.
"""
