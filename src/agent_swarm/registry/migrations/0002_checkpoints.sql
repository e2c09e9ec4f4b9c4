-- Points with memory, checkpoints of tasks, and what a fork was made from.

ALTER TABLE baselines ADD COLUMN memory INTEGER NOT NULL DEFAULT 0 CHECK (memory IN (0, 1));

-- "fix-1@before" for a fork, '' else
ALTER TABLE environments ADD COLUMN origin TEXT NOT NULL DEFAULT '';
-- the checkpoint that the present state descends from; by value, for the two tables refer to each other
ALTER TABLE environments ADD COLUMN checkpoint_id TEXT;

CREATE TABLE checkpoints (
    id TEXT NOT NULL PRIMARY KEY,
    environment_id TEXT NOT NULL REFERENCES environments (id),
    name TEXT NOT NULL,
    parent_id TEXT,
    handle TEXT NOT NULL DEFAULT '',
    ready INTEGER NOT NULL DEFAULT 0 CHECK (ready IN (0, 1)),
    memory INTEGER NOT NULL CHECK (memory IN (0, 1)),
    automatic INTEGER NOT NULL CHECK (automatic IN (0, 1)),
    created_at TEXT NOT NULL,
    UNIQUE (environment_id, name)
) STRICT;
