"""Random faults against tiny runs, which must end as uninterrupted ones do: see ``__main__``."""
