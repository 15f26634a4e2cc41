"""What methods write into: values are followed through every function of the tree that can be told."""
