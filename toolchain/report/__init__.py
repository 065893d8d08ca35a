"""The artifact's report: one HTML file with its figures and charts, which needs nothing beside it."""
