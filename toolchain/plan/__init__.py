"""What a recipe will need before anything is spent: memory, divisibility, tools."""
