"""The documents that stages exchange, and the recipes that they are made of; needs no torch.

A recipe layer and a manifest are the same kind of document. Paths inside a document in memory are
absolute; a file is found by its path, else beside its manifest, else in $EQUITOOLS_STORE/<digest>.
"""
# ruff: noqa: F401

from equitools.manifest.document import KINDS, absolute, check_schema, load_file, ordered, rebase
from equitools.manifest.files import digest_file, digest_files, entry, expand, locate, verify
from equitools.manifest.fold import fold, join, parse_assignment
from equitools.manifest.history import append_history, identity, last_record
from equitools.manifest.layers import layer, layer_root, layers
from equitools.manifest.strict_yaml import Document, dump, load
