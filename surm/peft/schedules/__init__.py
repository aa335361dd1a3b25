"""What changes in an adapter while it trains: rank budgets and penalties."""
