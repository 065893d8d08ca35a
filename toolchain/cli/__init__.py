"""The command line: one module a verb, which parses, calls one function and prints."""
