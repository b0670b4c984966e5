"""The studio: a page on which a person trains, watches, tests and keeps adapters, and the HTTP API under it.

Every run is a process of its own. Folders are the truth; what this process knows can be made again from them."""
