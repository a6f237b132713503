"""`lazyfx warm --world-size N`: makes the graphs of every rank of a job on one machine, without the others."""
