"""What a client trusts, and the credentials that it presents."""
