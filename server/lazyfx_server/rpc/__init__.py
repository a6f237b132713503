"""gRPC: decodes a request, makes one call into `compiling`, encodes the response."""
