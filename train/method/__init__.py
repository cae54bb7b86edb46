"""The methods that are compared, their settings, and the learning rate of each layer."""
