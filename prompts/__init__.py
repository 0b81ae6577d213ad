"""Versioned prompts: a template in a file, known by the hash of its content."""
