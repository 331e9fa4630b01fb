"""What can go wrong in the simulated world: a catalogue by name, and plans that make it happen."""
