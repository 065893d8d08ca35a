"""One module a tool: quantizes a model as a job says, in the tool's own environment, and measures itself."""
