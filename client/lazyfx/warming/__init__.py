"""The graphs of every rank of a job, made on one machine: `lazyfx warm --world-size N`."""
