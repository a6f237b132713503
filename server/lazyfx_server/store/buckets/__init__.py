"""Stores in buckets of objects, such as those of S3."""
