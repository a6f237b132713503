"""Passes that replace several calls by one."""
