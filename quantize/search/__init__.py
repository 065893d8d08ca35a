"""The search for a method for each group of linears, within a budget."""
