"""Rank budgets and penalties, which act on some families' adapters while they train."""
