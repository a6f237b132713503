"""Runs torch's own databases of operators and modules through the wire, a server and its passes."""
