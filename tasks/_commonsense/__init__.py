"""Items of the commonsense suite as text."""
