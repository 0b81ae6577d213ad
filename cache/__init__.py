"""Answers that were given before: found again by the same words or by the same meaning."""
