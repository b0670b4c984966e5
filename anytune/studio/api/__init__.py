"""The HTTP API, a file a subject. The page is one client of it."""
