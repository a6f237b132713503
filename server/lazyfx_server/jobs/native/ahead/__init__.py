"""What is done once in the process that native workers are forked from, before any request."""
