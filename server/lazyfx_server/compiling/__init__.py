"""What a request asks for: compiling a graph, rendering an artifact, taking in blobs."""
