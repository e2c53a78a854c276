-- What becomes of claims. State numbers: 0 scheduled, 1 waiting, 2 ready, 3 running, 4 succeeded, 5 dead, 6 cancelled,
-- 7 expired.

-- Who waits for jobs to end hears of these: a notification carries less than 8000 bytes. Of more than several thousand
-- nobody is told which: one look of each listener costs less then.
CREATE FUNCTION tell_finals(job_ids text[], now float8) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    at_once integer;
BEGIN
    IF EXISTS (SELECT FROM listener WHERE kinds & 2 > 0 AND expires_at > now) THEN
        at_once := 7900 / (SELECT max(octet_length(job_id)) + 1 FROM unnest(job_ids) job_id);
        IF cardinality(job_ids) > 32 * at_once THEN
            PERFORM pg_notify(channel(), 'f');
        ELSE
            PERFORM pg_notify(channel(), 'f' || array_to_string(job_ids[n : n + at_once - 1], E'\n'))
            FROM generate_series(1, cardinality(job_ids), at_once) n;
        END IF;
    END IF;
END $$;

-- Who waits for work hears that there is some.
CREATE FUNCTION tell_work(now float8) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM listener WHERE kinds & 1 > 0 AND expires_at > now) THEN
        PERFORM pg_notify(channel(), 'w');
    END IF;
END $$;

CREATE FUNCTION channel() RETURNS text LANGUAGE sql STABLE AS $$ SELECT 'tf_' || md5(current_schema()) $$;

-- Complete claims. The places, from 1, of those that this could not say: their claims have ended before.
CREATE FUNCTION complete_v1(job_ids text[], tokens bigint[], results bytea[], is_borrowed boolean, fixed_at float8)
RETURNS integer[]
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
DECLARE
    now float8 := now_s(fixed_at);
    ns integer[]; seqs bigint[]; queues integer[]; batches integer[]; begun float8[]; spent integer[]; cancelled boolean[];
    gated text[]; keyed bigint[];
    is_stirred boolean := false;
BEGIN
    WITH found AS MATERIALIZED (
        SELECT a.n, a.token, j.seq, j.queue, j.batch, j.attempts, j.gates, j.key
        FROM unnest(job_ids, tokens) WITH ORDINALITY a(job_id, token, n) JOIN job j ON j.id = a.job_id
        ORDER BY j.seq  -- as their locks are taken
    ), gone AS (
        DELETE FROM running r USING found f WHERE r.seq = f.seq AND r.token = f.token
        RETURNING f.n, f.seq, f.queue, f.batch, r.started_at, r.is_cancelled, f.attempts, f.gates, f.key
    )
    SELECT array_agg(g.n), array_agg(g.seq), array_agg(g.queue), array_agg(g.batch), array_agg(g.started_at),
        array_agg(g.attempts), array_agg(g.is_cancelled), array_agg(g.gates) FILTER (WHERE g.gates <> ''),
        array_agg(g.seq) FILTER (WHERE g.key IS NOT NULL)
    INTO ns, seqs, queues, batches, begun, spent, cancelled, gated, keyed FROM gone g;
    IF seqs IS NULL THEN
        RETURN ARRAY(SELECT generate_series(1, cardinality(job_ids)));
    END IF;
    INSERT INTO finished (seq, batch, state, finished_at, started_at, token, attempts, has_result,
        was_cancelled)
    SELECT a.seq, a.batch, 4, now, a.begun, tokens[a.n], a.spent + 1, results[a.n] IS NOT NULL, a.cancelled
    FROM unnest(ns, seqs, batches, begun, spent, cancelled) a(n, seq, batch, begun, spent, cancelled);
    INSERT INTO result (batch, finished_at, seq, data) SELECT a.batch, now, a.seq, results[a.n]
    FROM unnest(ns, seqs, batches) a(n, seq, batch) WHERE results[a.n] IS NOT NULL;
    IF keyed IS NOT NULL THEN
        DELETE FROM job_key k USING job j WHERE j.seq = ANY (keyed) AND k.task = j.task AND k.key = j.key
            AND k.seq = j.seq;
    END IF;
    INSERT INTO count_delta (queue, running, per_s, at)
    SELECT queue, -count(*), count(*) * ln(2) / 10, now FROM unnest(queues) queue GROUP BY queue;
    IF gated IS NOT NULL AND is_borrowed THEN
        -- Not the gates' rows: while they are locked nobody claims, and nobody settles.
        INSERT INTO owed_room (gate) SELECT x.name FROM unnest(gated) g, unnest(gates_of(g)) x(name);
    ELSIF gated IS NOT NULL THEN
        SELECT give_room(array_agg(x.name), array_agg(1::bigint), array_agg(0::bigint), now) INTO is_stirred
        FROM unnest(gated) g, unnest(gates_of(g)) x(name);
        IF is_stirred THEN PERFORM tell_work(now); END IF;
    END IF;
    PERFORM tell_finals(ARRAY(SELECT job_ids[n] FROM unnest(ns) n), now);
    IF cardinality(ns) = cardinality(job_ids) THEN RETURN '{}'; END IF;
    RETURN ARRAY(SELECT n FROM generate_series(1, cardinality(job_ids)) n WHERE n <> ALL (ns));
END $$;

CREATE FUNCTION add_error(job_seq bigint, attempt_n integer, now float8, e_type text, e_message text, e_kind text,
    e_stack text, most integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    last integer := coalesce((SELECT max(e.n) FROM error e WHERE e.seq = job_seq), 0);
BEGIN
    INSERT INTO error (seq, n, attempt, at, type, message, kind, stack)
    VALUES (job_seq, last + 1, attempt_n, now, e_type, e_message, e_kind, e_stack);
    DELETE FROM error e WHERE e.seq = job_seq AND e.n <= last + 1 - most;
END $$;

-- The job is final. Nothing else holds it any more.
CREATE FUNCTION finish(j job, end_state integer, spent integer, end_token bigint, begun_at float8, now float8,
    was text, result bytea, was_cancelled boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO finished (seq, batch, state, finished_at, started_at, token, attempts, has_result,
        was_cancelled)
    VALUES (j.seq, j.batch, end_state, now, begun_at, end_token, spent, result IS NOT NULL, was_cancelled);
    IF result IS NOT NULL THEN
        INSERT INTO result (batch, finished_at, seq, data) VALUES (j.batch, now, j.seq, result);
    END IF;
    IF j.key IS NOT NULL THEN
        DELETE FROM job_key k WHERE k.task = j.task AND k.key = j.key AND k.seq = j.seq;
    END IF;
    INSERT INTO count_delta (queue, ready, scheduled, running, dead, per_s, at)
    VALUES (j.queue, -(was = 'ready')::integer, -(was = 'scheduled')::integer, -(was = 'running')::integer,
        (end_state = 5)::integer, ln(2) / 10, now);
    IF j.gates <> '' AND was <> 'running' THEN
        INSERT INTO gate_delta (queue, gate, pending) SELECT j.queue, g, -1 FROM unnest(gates_of(j.gates)) g;
    END IF;
END $$;

-- The job, which ran, runs again: at its old place without a delay, else as due in `delay_s`. Its row is up to date. What
-- is ready (2) is for the caller to `place`: all of them at once, or two who do so would wait for each other's lines.
CREATE FUNCTION requeue(job_seq bigint, delay_s float8, now float8) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    j job;
BEGIN
    UPDATE job SET due_at = CASE WHEN delay_s IS NULL THEN due_at ELSE now + greatest(0, delay_s) END,
        ready_at = CASE WHEN delay_s > 0 THEN NULL ELSE now END WHERE seq = job_seq RETURNING * INTO j;
    IF j.gates <> '' THEN
        INSERT INTO gate_delta (queue, gate, pending) SELECT j.queue, g, 1 FROM unnest(gates_of(j.gates)) g;
    END IF;
    IF delay_s > 0 THEN
        INSERT INTO scheduled (queue, due_at, seq, expires_at) VALUES (j.queue, j.due_at, j.seq, j.expires_at);
        INSERT INTO count_delta (queue, scheduled, running, at) VALUES (j.queue, 1, -1, now);
        RETURN 0;
    END IF;
    INSERT INTO count_delta (queue, ready, running, at) VALUES (j.queue, 1, -1, now);
    RETURN 2;
END $$;

-- Decisions, in order. Kinds: 0 complete, 1 retry, 2 snooze, 3 release, 4 bury, 5 expire, 6 cancel. For each: 0 applied,
-- 1 already, 2 stale, and the state after it.
CREATE FUNCTION settle_v1(job_ids text[], tokens bigint[], kinds integer[], delays_s float8[], reasons text[],
    spent boolean[], results bytea[], e_types text[], e_messages text[], e_kinds text[], e_stacks text[],
    errors_kept integer, fixed_at float8)
RETURNS TABLE (answer integer, state integer)
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
#variable_conflict use_column
DECLARE
    now float8 := now_s(fixed_at);
    i integer; j job; r running; ended integer; kind integer;
    names text[] := '{}'; unused bigint[] := '{}'; finals text[] := '{}'; owed text[];
    back bigint[] := '{}';
    is_work boolean := false;
BEGIN
    PERFORM 1 FROM running x WHERE x.seq IN (SELECT y.seq FROM job y WHERE y.id = ANY (job_ids))
        ORDER BY x.seq FOR UPDATE;
    FOR i IN 1 .. cardinality(job_ids) LOOP
        j := NULL; r := NULL;
        SELECT * INTO j FROM job WHERE id = job_ids[i];
        IF j.seq IS NOT NULL THEN
            DELETE FROM running x WHERE x.seq = j.seq AND x.token = tokens[i] RETURNING * INTO r;
        END IF;
        IF r.seq IS NULL THEN
            SELECT f.answer, f.state INTO answer, state FROM late(j, tokens[i]) f;
            IF answer = 1 AND j.gates <> '' THEN
                owed := take_owed(gates_of(j.gates));
                names := names || owed;
                unused := unused || array_fill(0::bigint, ARRAY[cardinality(owed)]);
            END IF;
            RETURN NEXT;
            CONTINUE;
        END IF;
        IF j.gates <> '' THEN
            names := names || gates_of(j.gates);
            unused := unused || ARRAY(SELECT (kinds[i] = 3)::integer::bigint FROM unnest(gates_of(j.gates)));
        END IF;
        IF e_types[i] IS NOT NULL THEN
            PERFORM add_error(j.seq, j.attempts + 1, now, e_types[i], e_messages[i], e_kinds[i], e_stacks[i],
                errors_kept);
        END IF;
        kind := kinds[i];
        IF kind IN (1, 2, 3) THEN
            UPDATE job SET attempts = attempts + (kind = 1)::integer, snoozes = snoozes + (kind = 2)::integer,
                reason = CASE WHEN kind = 2 THEN reasons[i] ELSE reason END, settled = tokens[i],
                started_at = r.started_at WHERE seq = j.seq RETURNING * INTO j;
            IF r.is_cancelled THEN
                PERFORM finish(j, 6, j.attempts, tokens[i], r.started_at, now, 'running', NULL, true);
                state := 6;
            ELSE
                state := requeue(j.seq, CASE WHEN kind < 3 THEN delays_s[i] END, now);
                IF state = 2 THEN back := back || j.seq; END IF;
                is_work := true;
            END IF;
        ELSE
            IF kind = 5 THEN
                UPDATE job SET reason = reasons[i] WHERE seq = j.seq;
            END IF;
            state := (ARRAY[4, 0, 0, 0, 5, 7, 6])[kind + 1];
            PERFORM finish(j, state, j.attempts + (kind = 0 OR (kind = 4 AND spent[i]))::integer, tokens[i],
                r.started_at, now, 'running', CASE WHEN kind = 0 THEN results[i] END, r.is_cancelled);
        END IF;
        IF state > 3 THEN finals := finals || job_ids[i]; END IF;
        answer := 0;
        RETURN NEXT;
    END LOOP;
    IF cardinality(back) > 0 THEN PERFORM place(back); END IF;
    IF cardinality(names) > 0 THEN
        is_work := give_room(names, ARRAY(SELECT 1::bigint FROM unnest(names)), unused, now) OR is_work;
    END IF;
    IF is_work THEN PERFORM tell_work(now); END IF;
    IF cardinality(finals) > 0 THEN PERFORM tell_finals(finals, now); END IF;
END $$;

-- The fence's answer to a word about a claim that has ended.
CREATE FUNCTION late(j job, said_token bigint, OUT answer integer, OUT state integer) LANGUAGE plpgsql AS $$
DECLARE
    end_state integer; end_token bigint;
BEGIN
    answer := 2;
    IF j.seq IS NULL THEN RETURN; END IF;
    SELECT f.state, f.token INTO end_state, end_token FROM finished f WHERE f.seq = j.seq;
    IF said_token > 0 AND said_token IN (j.settled, end_token) THEN
        answer := 1;
        state := coalesce(end_state, state_of(j.seq));
    END IF;
END $$;

CREATE FUNCTION state_of(job_seq bigint) RETURNS integer LANGUAGE sql STABLE AS $$
    SELECT coalesce((SELECT f.state::integer FROM finished f WHERE f.seq = job_seq),
        (SELECT 3 FROM running r WHERE r.seq = job_seq), (SELECT 0 FROM scheduled s WHERE s.seq = job_seq), 2)
$$;

-- Progress and checkpoints, fenced. For each: 0 applied, 1 already, 2 stale.
CREATE FUNCTION note_v1(job_ids text[], tokens bigint[], progresses bytea[], checkpoints bytea[])
RETURNS integer[] LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    answers integer[] := '{}'; i integer; j job;
BEGIN
    FOR i IN SELECT a.n FROM unnest(job_ids) WITH ORDINALITY a(id, n) LEFT JOIN job x ON x.id = a.id
            ORDER BY x.seq, a.n LOOP
        j := NULL;
        SELECT * INTO j FROM job WHERE id = job_ids[i];
        PERFORM 1 FROM running r WHERE r.seq = j.seq AND r.token = tokens[i] FOR KEY SHARE;
        IF FOUND THEN
            INSERT INTO note AS n (seq, progress, checkpoint) VALUES (j.seq, progresses[i], checkpoints[i])
            ON CONFLICT (seq) DO UPDATE SET progress = coalesce(excluded.progress, n.progress),
                checkpoint = coalesce(excluded.checkpoint, n.checkpoint);
            answers[i] := 0;
        ELSE
            answers[i] := (SELECT l.answer FROM late(j, tokens[i]) l);
        END IF;
    END LOOP;
    RETURN answers;
END $$;
