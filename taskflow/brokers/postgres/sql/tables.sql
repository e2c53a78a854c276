-- State is a table, not a column: a job's row is written once, and moves of its number between narrow tables are its
-- life. `job` stands for what is kept; `ready`, `scheduled`, `running` and `finished` hold each job's number once.
-- What has no primary key has all of a row for its identity: else a publication of all tables would refuse each DELETE.
--
-- The order of locks. Whoever waits for a row, or to insert what another has inserted, waits only for what comes later
-- here than all that it holds:
--     1. `worker`: its own
--     2. `queue`, `batch`: by name
--     3. `finished`: by number
--     4. ids of `job`, then `job_key`: by id, by (task, key)
--     5. where a job is, in `scheduled`, `ready` or `running`: by number; then its `note`
--     6. `line`: by its key, all of one transaction at once (`line_up`; so `place` is called once)
--     7. `gate`, each with its `parking`: by name in "C"
-- What is taken without a wait (SKIP LOCKED, a try, a row that only its holder may touch) may be taken whenever. `claim`
-- takes all so once its due jobs have their lines, `reclaim` all but lines and gates, `prune` all.

CREATE TABLE meta (version integer PRIMARY KEY);

CREATE TABLE queue (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    is_paused boolean NOT NULL DEFAULT false,
    had_jobs boolean NOT NULL DEFAULT false
);

CREATE SEQUENCE token_seq;
CREATE SEQUENCE job_seq;

CREATE TABLE job (
    seq bigint PRIMARY KEY,
    id text COLLATE "C" NOT NULL UNIQUE,
    queue integer NOT NULL,
    priority smallint NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    snoozes integer NOT NULL DEFAULT 0,
    lost integer NOT NULL DEFAULT 0,
    settled bigint NOT NULL DEFAULT 0,  -- the last token that settled, unless that finished it
    submitted_at float8 NOT NULL,
    due_at float8 NOT NULL,
    ready_at float8,  -- NULL: due_at
    expires_at float8 NOT NULL,
    expires_s float8 NOT NULL,
    started_at float8,  -- of the last claim that did not complete
    task text COLLATE "C" NOT NULL,
    lane text COLLATE "C" NOT NULL,
    gates text COLLATE "C" NOT NULL,  -- JSON, or empty
    key text COLLATE "C",
    batch integer NOT NULL DEFAULT 0,
    expire_reason text NOT NULL,
    reason text,
    payload bytea NOT NULL
) WITH (fillfactor = 95, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX job_batch ON job (batch) WHERE batch > 0;

-- Keys of jobs that are not final.
CREATE TABLE job_key (
    task text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (task, key)
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);

-- The ready jobs of one lane (key, gates, suspects apart) and one priority. There while they may be some. `stand`: 1 is
-- open, 2 waits at `gate` since `parked_at`. `kind`: bit 0 has gates, bit 1 is of suspects.
CREATE TABLE line (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue integer NOT NULL,
    kind smallint NOT NULL,
    priority smallint NOT NULL,
    key text COLLATE "C" NOT NULL,
    gates text COLLATE "C" NOT NULL,
    stand smallint NOT NULL DEFAULT 1,
    gate text COLLATE "C",
    parked_at float8,
    UNIQUE (queue, key, gates, priority, kind)
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX line_open ON line (queue, kind, priority, id) WHERE stand = 1;
CREATE INDEX line_parked ON line (queue, gate, priority DESC, parked_at, id) WHERE stand = 2;

CREATE TABLE ready (
    line bigint NOT NULL,
    due_at float8 NOT NULL,
    seq bigint NOT NULL,
    expires_at float8 NOT NULL,
    PRIMARY KEY (line, due_at, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX ready_expires ON ready (expires_at);

CREATE TABLE scheduled (
    queue integer NOT NULL,
    due_at float8 NOT NULL,
    seq bigint NOT NULL UNIQUE,
    expires_at float8 NOT NULL,
    PRIMARY KEY (queue, due_at, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX scheduled_expires ON scheduled (expires_at);

CREATE TABLE running (
    seq bigint PRIMARY KEY,
    token bigint NOT NULL,
    worker integer NOT NULL,
    missed smallint NOT NULL DEFAULT 0,  -- beats in a row that did not name it
    is_cancelled boolean NOT NULL DEFAULT false,
    started_at float8 NOT NULL
) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX running_worker ON running (worker);

-- `token` settled it. `attempts` are all, `job.attempts` those before.
CREATE TABLE finished (
    seq bigint PRIMARY KEY,
    batch integer NOT NULL,
    state smallint NOT NULL,
    finished_at float8 NOT NULL,
    started_at float8,
    token bigint NOT NULL,
    attempts integer NOT NULL,
    has_result boolean NOT NULL,
    was_cancelled boolean NOT NULL  -- asked to cancel while it ran
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX finished_old ON finished (batch, state, finished_at, seq);

CREATE TABLE result (
    batch integer NOT NULL,
    finished_at float8 NOT NULL,
    seq bigint NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (batch, finished_at, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE note (seq bigint PRIMARY KEY, progress bytea, checkpoint bytea) WITH (fillfactor = 70);

CREATE TABLE error (
    seq bigint NOT NULL,
    n integer NOT NULL,
    attempt integer NOT NULL,
    at float8 NOT NULL,
    type text NOT NULL,
    message text NOT NULL,
    kind text NOT NULL,
    stack text NOT NULL,
    PRIMARY KEY (seq, n)
);

CREATE TABLE worker (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    expires_at float8 NOT NULL,
    has_missed boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);

-- Number 0 stands for jobs without a batch. `named_at`: when a submit named it last.
CREATE TABLE batch (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    is_finished boolean NOT NULL DEFAULT false,
    named_at float8 NOT NULL
);

CREATE TABLE gate (
    name text COLLATE "C" PRIMARY KEY,
    generation bigint NOT NULL DEFAULT 0,
    held_until float8 NOT NULL DEFAULT 0,
    reason text NOT NULL DEFAULT '',
    era bigint NOT NULL DEFAULT 0,
    ramp integer,
    good integer NOT NULL DEFAULT 0,
    bad integer NOT NULL DEFAULT 0,
    failed integer NOT NULL DEFAULT 0,
    word bigint NOT NULL DEFAULT 0,
    max_live bigint,
    max_live_override bigint,
    rate_interval_s float8,
    rate_burst bigint,
    rate_override_interval_s float8,
    rate_override_burst bigint,
    live bigint NOT NULL DEFAULT 0,
    tat float8 NOT NULL DEFAULT 0
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);

-- Claims of these gates ended in a caller's transaction, which may stay open for long: whoever settles or reclaims next
-- gives their room back.
CREATE TABLE owed_room (gate text COLLATE "C" NOT NULL)
    WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE owed_room REPLICA IDENTITY FULL;

-- Where lines of a queue wait, and when to look again.
CREATE TABLE parking (
    queue integer NOT NULL,
    gate text COLLATE "C" NOT NULL,
    wake_at float8 NOT NULL,
    PRIMARY KEY (queue, gate)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX parking_wake ON parking (queue, wake_at);
CREATE INDEX parking_gate ON parking (gate);

-- Counts are sums: a row of changes for each transaction, folded every second. No row is hot. `per_s` is what left the
-- queue, as a rate that was true at `at` and forgets half in ten seconds.
CREATE TABLE count_delta (
    queue integer NOT NULL,
    ready bigint NOT NULL DEFAULT 0,
    scheduled bigint NOT NULL DEFAULT 0,
    running bigint NOT NULL DEFAULT 0,
    dead bigint NOT NULL DEFAULT 0,
    per_s float8 NOT NULL DEFAULT 0,
    at float8 NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE count_delta REPLICA IDENTITY FULL;

CREATE TABLE gate_delta (queue integer NOT NULL, gate text COLLATE "C" NOT NULL, pending bigint NOT NULL)
    WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE gate_delta REPLICA IDENTITY FULL;
CREATE INDEX gate_delta_gate ON gate_delta (gate, queue);

-- Who wants to be told: bit 0 = of new work, bit 1 = of jobs that ended.
CREATE UNLOGGED TABLE listener (id text PRIMARY KEY, kinds integer NOT NULL, expires_at float8 NOT NULL);
