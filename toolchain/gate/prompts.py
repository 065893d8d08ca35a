"""The smoke gate's built-in prompts."""

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, in a small village by the sea,",
    "Water boils at a temperature of",
    "import json\n\n\ndef read_lines(path):",
    "The three primary colours are",
    "Q: What is 12 times 12?\nA:",
    "Dear Sir or Madam,\n\nI am writing to",
    "SELECT name, COUNT(*) FROM",
    "The quick brown fox jumps over",
    "In physics, energy is",
    "class Stack:\n    def __init__(self):",
    "List of the days of the week: Monday, Tuesday,",
    "Translate to German: Good morning ->",
    "He opened the letter, read it twice, and",
    "The result of the experiment shows that",
)
"""What is asked where the recipe names no prompts of its own: prose, facts and code."""
