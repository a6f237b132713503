"""What one request, one tenant and all requests together may take."""
