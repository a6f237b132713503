"""What is sent for a graph of dynamo's: the graph itself, or what AOTAutograd makes of it."""
