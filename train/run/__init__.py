"""One run's folder: everything that writes or reads the files of a single run. No torch here."""
