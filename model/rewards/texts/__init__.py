"""What several checks of the text itself share: identification of languages, masking, shingles, benchmark files."""
