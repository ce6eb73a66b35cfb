"""One model on several workers: data, tensor and pipeline parallel, chosen by a measured plan."""
