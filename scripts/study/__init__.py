"""The muP study: why one learning rate does not fit all widths, derived, measured and plotted."""
