"""The files of one run: what writes and reads them. Only ``hparams`` imports torch."""
