"""Files of other worlds, without their libraries and without models: named arrays in and out."""
