"""One execution for identical requests, on one server and on those that share a store."""
