"""Everything about several processes that does not depend on a strategy: messages, shards, checkpoints of both."""
