"""One module per command or group of commands; each is imported when it runs."""
