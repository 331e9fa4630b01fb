"""Model providers over HTTP: requests out, deltas and one answer back."""
