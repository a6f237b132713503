"""Generated protobuf stubs; `make proto` rewrites them."""
