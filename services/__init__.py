"""BentoML services and the way of a request: the only package that knows BentoML and HTTP."""
