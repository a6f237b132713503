"""`wait: false`: a job runs its graph as it is until the server's result is there."""
