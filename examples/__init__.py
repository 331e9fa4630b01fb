"""Small programs over the public actor API. Each runs by itself, and as a test."""
