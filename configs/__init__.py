"""Settings as files, and as data: which file a method runs with, and the protocols."""
