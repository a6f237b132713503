"""What carries calls: TCP connections and their encryption."""
