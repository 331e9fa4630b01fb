"""The routes that ``letta-client`` calls, in its shapes; its names stay in this package."""
