"""Kelpie's own routes: approvals, effects, events, plans, the audit, the store, health."""
