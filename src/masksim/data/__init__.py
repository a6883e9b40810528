"""Images and what they are: manifests, public sets, preparation, views."""
