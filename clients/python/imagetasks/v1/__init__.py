"""Generated messages and stubs of package imagetasks.v1, and its descriptor set."""
