"""MetaGraphDefs: graphs as files, whole or in part, and back."""
