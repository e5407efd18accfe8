"""Models, vocabularies and runs on disk and on the net."""
