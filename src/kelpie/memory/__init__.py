"""What an agent remembers: core blocks now; working and archival memory join them here."""
