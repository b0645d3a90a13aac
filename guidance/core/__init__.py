"""What every room stands on: noise, labels, files, and the way to and from a device."""
