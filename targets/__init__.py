"""What may answer a route, which of it is asked, and what becomes of a request when it fails."""
