"""The parts of the check `math`: finding an answer in a text, and comparing what needs no computer algebra."""
