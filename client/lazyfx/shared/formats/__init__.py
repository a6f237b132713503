"""Formats that hold a graph and load with torch alone."""
