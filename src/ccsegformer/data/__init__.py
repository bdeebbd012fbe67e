"""Files to samples: class names, folders, generated scenes, transforms and the stream of training."""
