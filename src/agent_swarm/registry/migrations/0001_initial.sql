-- Times are ISO 8601 in UTC; ids are hex; handles and endpoints are the provider's.

CREATE TABLE installation (
    id TEXT NOT NULL PRIMARY KEY,
    created_at TEXT NOT NULL
) STRICT;

CREATE TABLE environments (
    id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('project', 'task')),
    name TEXT NOT NULL,
    provider TEXT NOT NULL,
    handle TEXT NOT NULL DEFAULT '',
    image TEXT,
    baseline_id TEXT REFERENCES baselines (id),
    parent_id TEXT REFERENCES environments (id),
    cpus INTEGER NOT NULL,
    memory_mib INTEGER NOT NULL,
    disk_gib INTEGER NOT NULL,
    status TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    endpoint TEXT,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    started_at TEXT,
    UNIQUE (kind, name),
    CHECK ((kind = 'task') = (parent_id IS NOT NULL))
) STRICT;

CREATE INDEX environments_parent ON environments (parent_id);
CREATE INDEX environments_baseline ON environments (baseline_id);

CREATE TABLE baselines (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL REFERENCES environments (id),
    generation INTEGER NOT NULL,
    handle TEXT NOT NULL DEFAULT '',
    ready INTEGER NOT NULL DEFAULT 0,
    created_at TEXT NOT NULL,
    UNIQUE (project_id, generation)
) STRICT;

-- The journal. It outlives the environments it speaks of, so it refers to them by value.
CREATE TABLE operations (
    id INTEGER PRIMARY KEY,
    environment_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'done', 'failed', 'rolled-back')),
    step TEXT NOT NULL DEFAULT '',
    started_at TEXT NOT NULL,
    ended_at TEXT,
    error TEXT NOT NULL DEFAULT ''
) STRICT;

CREATE INDEX operations_environment ON operations (environment_id);
CREATE UNIQUE INDEX operations_open ON operations (environment_id) WHERE state = 'open';
