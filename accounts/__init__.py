"""Who may ask how much, and what was asked: keys, rates, budgets and the audit trail. It knows neither HTTP nor the bundle."""
