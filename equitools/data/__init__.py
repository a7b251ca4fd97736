"""Pictures in: from any source to shards, and back to arrays."""
