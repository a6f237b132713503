"""`wait: false`: a job runs its graph uncompiled until the server's result arrives."""
