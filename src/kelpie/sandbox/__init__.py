"""Where effects run: the sandbox protocol, its tiers, and change sets over a workspace."""
