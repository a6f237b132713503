"""The connection to an upstream server, and the identity under which it is asked."""
