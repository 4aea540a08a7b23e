"""The parts of the check `code`: taking the program from a text, reading tests, running them, comparing, mutating."""
