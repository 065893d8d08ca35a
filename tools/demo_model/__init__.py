"""How `models/demo` and `models/demo-draft` are made, from the text to the model cards."""
