"""Schedules of an adapter while it trains: rank budgets and penalties."""
